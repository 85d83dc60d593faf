"""The device pages of one group: the tensors, and who holds each page."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .spec import GroupSpec


class CacheFull(RuntimeError):
    """More pages were asked for than are free."""


class PageAccountingError(RuntimeError):
    """A page was given back that its holder did not hold: a bug in the caller, never a full pool."""


class PagePool:
    """`num_pages` pages of one group, each held by any number of running sequences and of cache entries.

    A page is *free* (nobody holds it), *in use* (a sequence does) or *cached* (only the cache does). `allocate` makes
    the caller a sequence holder; `retain`/`release` count sequences, `keep`/`drop` cache entries.

    `k` is `[num_layers, num_pages, page_size, num_kv_heads, head_dim]`, `v` the same with `v_head_dim`, uninitialised.
    """

    def __init__(
        self, spec: GroupSpec, page_size: int, num_pages: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if page_size < 1:
            raise ValueError(f"PagePool {spec.name!r}: page_size must be at least 1, got {page_size}")
        if num_pages < 1:
            raise ValueError(f"PagePool {spec.name!r}: num_pages must be at least 1, got {num_pages}")
        shape = (len(spec.layers), num_pages, page_size, spec.num_kv_heads)
        self.spec = spec
        self.num_pages = num_pages
        self.page_size = page_size
        self.bytes_per_page = page_size * spec.bytes_per_token(dtype)
        self.k = torch.empty(*shape, spec.head_dim, dtype=dtype, device=device)
        self.v = torch.empty(*shape, spec.v_head_dim, dtype=dtype, device=device)
        self._free = list(range(num_pages - 1, -1, -1))
        self._users = [0] * num_pages
        self._keepers = [0] * num_pages
        self.num_in_use = 0
        self.peak_in_use = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that only the cache holds: evicting entries can free all of them."""
        return self.num_pages - self.num_free - self.num_in_use

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The K and V pages `[num_pages, page_size, num_kv_heads, dim]` of the model's layer `layer_idx`: views."""
        index = self.spec.layers.index(layer_idx)
        return self.k[index], self.v[index]

    def is_in_use(self, page: int) -> bool:
        return self._users[page] > 0

    def is_kept(self, page: int) -> bool:
        return self._keepers[page] > 0

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages for a sequence. Raises CacheFull, taking none, when there are fewer."""
        if count > self.num_free:
            raise CacheFull(f"pool {self.spec.name!r}: {count} pages asked for, {self.num_free} are free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._users[page] = 1
        self._count_in_use(count)
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """One more sequence uses these pages, which somebody holds already."""
        for page in pages:
            self._check_held(page)
            self._count_in_use(self._users[page] == 0)
            self._users[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One sequence less uses these pages; those that nobody holds any more become free."""
        for page in pages:
            if self._users[page] == 0:
                raise PageAccountingError(f"pool {self.spec.name!r}: page {page} released, but no sequence uses it")
            self._users[page] -= 1
            self.num_in_use -= self._users[page] == 0
            self._free_if_unheld(page)

    def keep(self, pages: Iterable[int]) -> None:
        """One more cache entry holds these pages, which somebody holds already."""
        for page in pages:
            self._check_held(page)
            self._keepers[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One cache entry less holds these pages; those that nobody holds any more become free."""
        for page in pages:
            if self._keepers[page] == 0:
                raise PageAccountingError(f"pool {self.spec.name!r}: page {page} dropped, but no cache entry holds it")
            self._keepers[page] -= 1
            self._free_if_unheld(page)

    def _count_in_use(self, more: int) -> None:
        self.num_in_use += more
        self.peak_in_use = max(self.peak_in_use, self.num_in_use)

    def _check_held(self, page: int) -> None:
        if not (self._users[page] or self._keepers[page]):
            raise PageAccountingError(f"pool {self.spec.name!r}: page {page} is free; only allocate may take it")

    def _free_if_unheld(self, page: int) -> None:
        if not (self._users[page] or self._keepers[page]):
            self._free.append(page)
