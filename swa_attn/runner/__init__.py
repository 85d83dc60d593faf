"""A small, readable runner for hybrid sliding-window models on the package's ops and cache."""

from .checkpoint import CheckpointError
from .config import ModelConfig
from .engine import Engine
from .fields import ConfigError
from .fingerprint import model_fingerprint
from .generation_config import GenerationConfig
from .loader import load_model
from .request import Completion, FinishReason
from .sampler import SamplingParams, sample
from .stream import TokenStream
from .usage import Usage

__all__ = [
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Engine",
    "FinishReason",
    "GenerationConfig",
    "ModelConfig",
    "SamplingParams",
    "TokenStream",
    "Usage",
    "load_model",
    "model_fingerprint",
    "sample",
]
