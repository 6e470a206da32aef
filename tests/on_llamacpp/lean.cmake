# Read by CMake inside llama.cpp's own project: what only its programs use is not compiled, which is half of the work.
set(LLAMA_BUILD_COMMON OFF)
