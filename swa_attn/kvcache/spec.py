"""What a group of layers stores per token, and which of it a query still needs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GroupSpec:
    """Layers with one attention geometry and window, which share a page pool and a block table.

    `window` counts the query's own key: the query at position p sees the keys k with `0 <= p - k < window`. None means
    full attention. `layers` are the model's layer indices, in the order in which the pool stores them.
    """

    name: str
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"GroupSpec {self.name!r}: layers must be distinct and at least one, got {self.layers}")
        for field in ("num_kv_heads", "head_dim", "v_head_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"GroupSpec {self.name!r}: {field} must be at least 1, got {getattr(self, field)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"GroupSpec {self.name!r}: window must be at least 1 or None, got {self.window}")

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of K and V that one token takes in all layers of the group."""
        return len(self.layers) * self.num_kv_heads * (self.head_dim + self.v_head_dim) * dtype.itemsize

    def first_visible(self, position: int) -> int:
        """The oldest key that the query at `position` sees: what resuming there needs starts here."""
        return 0 if self.window is None else max(0, position - self.window + 1)
