"""rtp-llm's Python API on Foreword's engine: its programs run with other import lines (docs/rtp-llm.md)."""

from foreword.interop.rtp.model import Model, ModelConfig, ModelFactory
from foreword.interop.rtp.pipeline import GenerateResponse, Pipeline

__all__ = ["GenerateResponse", "Model", "ModelConfig", "ModelFactory", "Pipeline"]
