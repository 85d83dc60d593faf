"""Page ids of one group in one tier: which are free, and how many are in use."""

from collections.abc import Sequence

from .spec import GroupSpec


class CacheFull(RuntimeError):
    """More pages were asked for than are free."""


class PageAccountingError(RuntimeError):
    """A page was given back that was not taken: a bug in the caller, never a full pool."""


class PagePool:
    """Ids of the pages of one group in one tier.

    A page is *free*, *in use* (held by a sequence or a transfer) or *cached* (only the prefix cache holds it). The pool
    hands ids out and takes them back; `hold` and `let_go` count the pages in use, which are among those handed out.

    Args:
        num_pages: ids are 0 .. num_pages - 1. None: as many as are asked for (a byte budget bounds them elsewhere).
    """

    def __init__(self, spec: GroupSpec, bytes_per_page: int, num_pages: int | None) -> None:
        if num_pages is not None and num_pages < 1:
            raise ValueError(f"PagePool {spec.name!r}: num_pages must be at least 1, got {num_pages}")
        self.spec = spec
        self.bytes_per_page = bytes_per_page
        self.num_pages = num_pages
        self.peak_in_use = 0
        self.reset()

    def reset(self) -> None:
        """All pages are free, whoever had them."""
        self.num_in_use = 0
        self._free: list[int] = []
        self._next = 0  # ids from here on are not handed out yet
        self._taken = bytearray()

    @property
    def num_used(self) -> int:
        """Pages that are not free."""
        return self._next - len(self._free)

    @property
    def num_free(self) -> int:
        """Raises TypeError for a pool without a bound."""
        return self.num_pages - self.num_used

    @property
    def num_cached(self) -> int:
        """Pages that evicting cache entries can free."""
        return self.num_used - self.num_in_use

    def is_free(self, page: int) -> bool:
        return page >= self._next or not self._taken[page]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages. Raises CacheFull, taking none, when there are fewer."""
        if self.num_pages is not None and count > self.num_free:
            raise CacheFull(f"pool {self.spec.name!r}: {count} pages were asked for, {self.num_free} are free")
        reused = min(count, len(self._free))
        pages = self._free[len(self._free) - reused :]
        del self._free[len(self._free) - reused :]
        if reused < count:
            fresh = self._next + count - reused
            pages.extend(range(self._next, fresh))
            self._taken.extend(bytes(fresh - self._next))
            self._next = fresh
        for page in pages:
            self._taken[page] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back. Raises PageAccountingError, freeing none further, for one that is free."""
        taken = self._taken
        for page in pages:
            if page >= self._next or not taken[page]:
                raise PageAccountingError(f"pool {self.spec.name!r}: page {page} is free; only allocate may take it")
            taken[page] = 0
        self._free.extend(pages)

    def hold(self, count: int) -> None:
        """`count` more of the pages that were handed out are in use."""
        self.num_in_use += count
        self.peak_in_use = max(self.peak_in_use, self.num_in_use)

    def let_go(self, count: int) -> None:
        self.num_in_use -= count
