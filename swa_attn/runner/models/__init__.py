"""Model families, by the `model_type` of their `config.json`."""

from .mimo import MiMoForCausalLM

MODELS = {"mimo_v2_flash": MiMoForCausalLM, "mimo_v2": MiMoForCausalLM}

__all__ = ["MODELS", "MiMoForCausalLM"]
