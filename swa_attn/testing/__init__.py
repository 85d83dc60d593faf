"""Input builders with poison, and comparison against the float64 oracle: shared by tests and benchmarks."""

from .cases import AttentionCase, Inputs, build
from .compare import assert_close_to_oracle, oracle

__all__ = ["AttentionCase", "Inputs", "assert_close_to_oracle", "build", "oracle"]
