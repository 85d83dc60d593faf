"""Moving pages between tiers: what a move is, and who carries it out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from .tier import Tier


@dataclass(eq=False, slots=True)
class Transfer:
    """Copies pages of one group between neighbouring tiers.

    The source pages stay as they are until `done` has been called. `done(count)` says how many of the pages, the leading
    ones, have arrived: all of them between device and host, perhaps fewer to and from a store.
    """

    group: int
    source: Tier
    target: Tier
    source_ids: Sequence[int]
    target_ids: Sequence[int]
    keys: Sequence[Hashable]
    done: Callable[[int], None]


class Mover(ABC):
    """Carries out transfers, those between device and host in the order in which they were submitted.

    Whoever computes on pages first waits for the moves into the device (`wait_for_layer`), so a page may be named in a
    block table as soon as its transfer has been submitted.
    """

    @abstractmethod
    def submit(self, transfer: Transfer) -> None:
        """Begin a transfer. May call its `done` at once."""

    @abstractmethod
    def poll(self, timeout: float | None = 0.0) -> bool:
        """Call `done` of the transfers that have ended, waiting for one up to `timeout` seconds (None: as long as it
        takes) if any is under way. Returns whether there were any. Raises what a transfer failed with."""

    @property
    @abstractmethod
    def num_pending(self) -> int:
        """Transfers whose `done` has not been called."""

    def wait_for_layer(self, layer: int) -> None:  # noqa: B027
        """Wait until what was submitted into the device has arrived in this layer of the model."""

    def wait_for_host(self) -> None:  # noqa: B027
        """Wait until what was submitted from the device into the host has arrived."""

    def discard(self, tier: Tier, group: int, keys: Sequence[Hashable]) -> None:  # noqa: B027
        """The pages named `keys` are no longer wanted in `tier`."""

    def refresh(self, group: int, keys: Sequence[Hashable]) -> None:  # noqa: B027
        """The pages named `keys` are in use above the store: they should not age out there."""

    def known(self, group: int, keys: Sequence[Hashable]) -> int:
        """How many leading ones of the pages named `keys` a store holds that the tree does not know of."""
        return 0

    def reset(self) -> None:  # noqa: B027
        """End what is under way and forget it: no `done` of a transfer submitted so far is called any more.

        May come in the middle of another method. Raises RuntimeError, and may be called again, when a transfer does not end.
        """

    def close(self) -> None:  # noqa: B027
        """End what is under way and release threads; safe to call twice."""


class InstantMover(Mover):
    """Moves nothing and says at once that all has arrived: for replays, whose pages have no contents."""

    num_pending = 0

    def submit(self, transfer: Transfer) -> None:
        transfer.done(len(transfer.keys))

    def poll(self, timeout: float | None = 0.0) -> bool:
        return False
