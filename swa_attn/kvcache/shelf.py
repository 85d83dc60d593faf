"""The pages of all groups in one tier, and the byte budget that they may share."""

from collections.abc import Sequence

from .pool import PagePool
from .tier import Tier


class Shelf:
    """One tier's pools, one per group.

    A pool may have its own bound (`num_pages`), and all of them together one in bytes: real device and host memory has
    the first, a store and a simulation the second.
    """

    def __init__(self, tier: Tier, pools: Sequence[PagePool], budget_bytes: int | None = None) -> None:
        if budget_bytes is not None and budget_bytes < 1:
            raise ValueError(f"Shelf {tier.name}: budget_bytes must be at least 1 or None, got {budget_bytes}")
        self.tier = tier
        self.pools = tuple(pools)
        self.budget_bytes = budget_bytes

    @property
    def used_bytes(self) -> int:
        return sum(p.num_used * p.bytes_per_page for p in self.pools)

    def pages_short(self, group: int, count: int) -> int:
        """How many pages of the group's own pool must be freed for `count` more of them."""
        pool = self.pools[group]
        return 0 if pool.num_pages is None else max(0, count - pool.num_free)

    def bytes_short(self, num_bytes: int) -> int:
        """How many bytes must be freed for `num_bytes` more."""
        return 0 if self.budget_bytes is None else max(0, self.used_bytes + num_bytes - self.budget_bytes)

    def fits(self, needs: Sequence[int]) -> bool:
        """Whether `needs[group]` more pages of every group could be had by evicting whatever is not in use."""
        for pool, count in zip(self.pools, needs, strict=True):
            if pool.num_pages is not None and count > pool.num_pages - pool.num_in_use:
                return False
        if self.budget_bytes is None:
            return True
        wanted = sum((n + p.num_in_use) * p.bytes_per_page for p, n in zip(self.pools, needs, strict=True))
        return wanted <= self.budget_bytes

    def most(self, group: int, count: int) -> int:
        """As `fits`, for one group: how many of `count` pages could be had."""
        pool = self.pools[group]
        if pool.num_pages is not None:
            count = min(count, pool.num_pages - pool.num_in_use)
        if self.budget_bytes is not None:
            held = sum(p.num_in_use * p.bytes_per_page for p in self.pools)
            count = min(count, (self.budget_bytes - held) // pool.bytes_per_page)
        return max(0, count)
