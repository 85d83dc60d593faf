"""Runs a GPU backend on CPU tensors: so the tests of the ops, which build, poison and compare CPU tensors, test a card's
kernels unchanged.

    backends.register("card-triton", OnCard("triton", backends.load))
    with use_backend("card-triton"):
        swa_attn.prefill(...)              # on copies on the card; what was written comes back
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

HOST_CACHES = ("k_host_cache", "v_host_cache")


class OnCard:
    """A backend (see backends.py) for CPU tensors that is another backend on `device`; `load` gives its module by name.

    Host caches are copied to pinned host memory, everything else to the device.
    """

    def __init__(self, name: str, load: Callable[[str], ModuleType], device: str = "cuda"):
        self.name, self._load, self._device = name, load, torch.device(device)

    def lacks(self, case: object) -> str | None:
        return self._load(self.name).lacks(dataclasses.replace(case, backend=self.name, device=self._device.type))

    def __getattr__(self, op: str) -> Callable[..., None]:
        run = getattr(self._load(self.name), op)

        def run_there(*args: object, **options: object) -> None:
            moved = _Moved(self._device)
            there = [moved.view(a) for a in args]
            run(*there, **{name: moved.view(a, on_host=name in HOST_CACHES) for name, a in options.items()})
            moved.copy_back()

        return run_there


class _Moved:
    """Whole storages elsewhere, so that strides, offsets, gaps and aliases stay what they are."""

    def __init__(self, device: torch.device):
        self._device = device
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def view(self, x: object, on_host: bool = False) -> object:
        """A view of the moved storage that is like `x`; of pinned host memory if `on_host`. What is no tensor stays."""
        if not isinstance(x, Tensor):
            return x
        storage = x.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage, self._copy(storage, on_host)
        moved = self._storages[storage._cdata][1]
        return torch.empty(0, dtype=x.dtype, device=moved.device).set_(moved, x.storage_offset(), x.shape, x.stride())

    def _copy(self, storage: torch.UntypedStorage, on_host: bool) -> torch.UntypedStorage:
        if self._device.type == "cpu":
            return storage.clone()
        if on_host:
            return storage.pin_memory()
        return torch.UntypedStorage(storage.nbytes(), device=self._device).copy_(storage)

    def copy_back(self) -> None:
        """Everything, read-only inputs too: a kernel that wrote to one is found out."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # host pages were written without torch's knowledge
        for storage, moved in self._storages.values():
            storage.copy_(moved)
