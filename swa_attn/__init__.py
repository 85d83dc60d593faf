"""Sliding-window paged attention: kernels, cache and a reference runner for hybrid models."""

from ._check_values import check_values
from .attention import AttentionMetadata, SlidingWindowAttention
from .backends import use_backend
from .ops import append_kv, copy_pages, decode, merge_states, prefill
from .version import __version__

__all__ = [
    "AttentionMetadata",
    "SlidingWindowAttention",
    "__version__",
    "append_kv",
    "check_values",
    "copy_pages",
    "decode",
    "merge_states",
    "prefill",
    "use_backend",
]
