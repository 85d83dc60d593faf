"""Sliding-window paged attention: kernels, cache and a reference runner for hybrid models."""

from .backends import use_backend
from .ops import append_kv, copy_pages, decode, merge_states, prefill

__version__ = "0.1.0"

__all__ = ["append_kv", "copy_pages", "decode", "merge_states", "prefill", "use_backend"]
