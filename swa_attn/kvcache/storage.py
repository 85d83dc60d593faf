"""The memory behind page ids: the tensors of one group in device or host memory."""

import torch
from torch import Tensor

from .spec import GroupSpec


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
