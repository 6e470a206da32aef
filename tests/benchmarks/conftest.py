"""The fixtures of `bench_fixtures`."""

from bench_fixtures import make_record, no_vllm, roomy_folder, tiny_data, tiny_folder

__all__ = ["make_record", "no_vllm", "roomy_folder", "tiny_data", "tiny_folder"]
