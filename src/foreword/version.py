"""The version, apart from the package root so that any room may read it; and those of what it runs on."""

from importlib import metadata

__version__ = "0.1.0"

_PACKAGES = ("torch", "transformers", "vllm", "llama_cpp_python", "gradio")


def versions() -> dict[str, str]:
    """Versions of Foreword and of the installed packages that compute, none of which is imported."""
    found = {"foreword": __version__}
    for package in _PACKAGES:
        try:
            found[package.replace("_", "-")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
