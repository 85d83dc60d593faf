"""The memory behind page ids: the tensors of one group in device memory and in host memory."""

from math import prod

import torch
from torch import Tensor

from .spec import GroupSpec
from .store.buffers import aligned_empty

SCALE_BYTES = 4  # of one float32 scale


class DevicePages:
    """K and V of a group, layer by layer: `k` is `[num_layers, num_pages, page_size, num_kv_heads, head_dim]`, `v` the
    same with `v_head_dim`, uninitialised."""

    def __init__(
        self, spec: GroupSpec, page_size: int, num_pages: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (len(spec.layers), num_pages, page_size, spec.num_kv_heads)
        self.spec = spec
        self.k = torch.empty(*shape, spec.head_dim, dtype=dtype, device=device)
        self.v = torch.empty(*shape, spec.v_head_dim, dtype=dtype, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """The K and V pages `[num_pages, page_size, num_kv_heads, dim]` of the group's layer number `index`: views."""
        return self.k[index], self.v[index]


class HostPages:
    """Pages of a group page by page, so that one moves in one piece: K of all layers, then V, then scales.

    `k`, `v` are views shaped like `DevicePages`'; `records` is uint8 `[num_pages, bytes_per_page]`. In float8_e4m3fn,
    `k_scale` and `v_scale` are float32 `[num_layers, num_pages, num_kv_heads]`, views into the records too.

    Args:
        pinned: page-locked memory, which a GPU can read.
    """

    def __init__(self, spec: GroupSpec, page_size: int, num_pages: int, dtype: torch.dtype, *, pinned: bool) -> None:
        layers, heads = len(spec.layers), spec.num_kv_heads
        self.spec = spec
        self.bytes_per_page = host_page_bytes(spec, page_size, dtype)
        size = num_pages * self.bytes_per_page
        base = (
            torch.empty(size, dtype=torch.uint8, pin_memory=True) if pinned else torch.from_numpy(aligned_empty(size))
        )
        self.records = base.view(num_pages, self.bytes_per_page)
        k_shape = (layers, num_pages, page_size, heads, spec.head_dim)
        v_shape = (layers, num_pages, page_size, heads, spec.v_head_dim)
        k_bytes, v_bytes = (prod(s) // num_pages * dtype.itemsize for s in (k_shape, v_shape))
        self.k = self._view(dtype, k_shape, 0)
        self.v = self._view(dtype, v_shape, k_bytes)
        self.k_scale: Tensor | None = None
        self.v_scale: Tensor | None = None
        if dtype.itemsize == 1:
            scales = (layers, num_pages, heads)
            start = _round_up(k_bytes + v_bytes, SCALE_BYTES)
            self.k_scale = self._view(torch.float32, scales, start)
            self.v_scale = self._view(torch.float32, scales, start + layers * heads * SCALE_BYTES)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """As `DevicePages.layer`."""
        return self.k[index], self.v[index]

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
        """`[num_layers, num_pages, ...]` inside the records, `start` bytes into each."""
        inner = [prod(shape[i + 1 :]) for i in range(2, len(shape))]
        strides = (prod(shape[2:]), self.bytes_per_page // dtype.itemsize, *inner)
        return self.records.view(-1).view(dtype).as_strided(shape, strides, start // dtype.itemsize)


def host_page_bytes(spec: GroupSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in host memory and in a store: a multiple of four, so that scales are aligned."""
    size = page_size * spec.bytes_per_token(dtype)
    if dtype.itemsize == 1:
        size = _round_up(size, SCALE_BYTES) + 2 * len(spec.layers) * spec.num_kv_heads * SCALE_BYTES
    return _round_up(size, SCALE_BYTES)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
