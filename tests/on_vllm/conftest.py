"""What these tests need beside vLLM itself."""

import os

# Of its cache, in GiB; the tests bound it by blocks.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
