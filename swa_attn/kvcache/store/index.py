"""Which record is in which slot, what may be evicted, and in which order. No I/O; guarded by the store's lock."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from .record import Space
from .segment import Format, Segment

_MAX_STRIKES = 2
_EVICTIONS_PER_LOOK = 64  # between two looks at other slot sizes' segments


@dataclass(frozen=True, slots=True)
class Slot:
    segment: Segment
    format: Format  # the segment's when the slot was handed out
    number: int

    @property
    def offset(self) -> int:
        return self.format.offset(self.number)

    @property
    def payload(self) -> int:
        return self.format.slot_payload

    @property
    def nbytes(self) -> int:
        return self.format.stride

    @property
    def owned(self) -> bool:
        return self.segment.owned


@dataclass(eq=False, slots=True)
class Entry:
    """A record that can be read. While it has readers its slot is not given to anybody else."""

    space: Space
    key: bytes
    slot: Slot
    length: int
    sequence: int
    used: int = -1  # when, by the index's clock
    readers: int = 0
    removed: bool = False


@dataclass
class _Shelf:
    """Entries in order of use, oldest first, and their bytes."""

    entries: "OrderedDict[Entry, None]" = field(default_factory=OrderedDict)
    nbytes: int = 0

    def add(self, entry: Entry) -> None:
        self.entries[entry] = None
        self.nbytes += entry.slot.nbytes

    def remove(self, entry: Entry) -> None:
        del self.entries[entry]
        self.nbytes -= entry.slot.nbytes

    def oldest(self) -> Entry | None:
        """The oldest entry that nobody is reading."""
        return next((entry for entry in self.entries if not entry.readers), None)


class Index:
    """Entries by key; shelves per space (quota) and per slot size (room); free slots per slot size.

    Entries in segments that other processes own are found, but are on no shelf: not ours to evict or to count.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[Space, bytes], Entry] = {}
        self._counts: Counter[Space] = Counter()
        self._spaces: dict[Space, _Shelf] = {}
        self._sizes: dict[int, _Shelf] = {}
        self._by_segment: dict[Segment, set[Entry]] = {}
        self._free: dict[int, deque[Slot]] = {}
        self._strikes: Counter[Slot] = Counter()
        self._looks: Counter[int] = Counter()
        self._clock = count()
        self.evictions = 0

    def find(self, space: Space, key: bytes) -> Entry | None:
        return self._entries.get((space, key))

    def count(self, space: Space) -> int:
        return self._counts[space]

    def used_bytes(self, space: Space) -> int:
        return self._space(space).nbytes

    def add(self, entry: Entry) -> None:
        """An older record of the same key gives way."""
        if (other := self.find(entry.space, entry.key)) is not None:
            self.remove(other)
        self._entries[entry.space, entry.key] = entry
        self._counts[entry.space] += 1
        self._by_segment.setdefault(entry.slot.segment, set()).add(entry)
        if entry.slot.owned:
            self._space(entry.space).add(entry)
            self._size(entry.slot.payload).add(entry)
            self._mark_used(entry)

    def touch(self, entry: Entry) -> None:
        if entry.slot.owned and not entry.removed:
            self._space(entry.space).entries.move_to_end(entry)
            self._size(entry.slot.payload).entries.move_to_end(entry)
            self._mark_used(entry)

    def _mark_used(self, entry: Entry) -> None:
        entry.used = entry.slot.segment.last_used = next(self._clock)

    def remove(self, entry: Entry) -> None:
        """Makes the entry unfindable at once; its slot is free when the last reader has left."""
        if entry.removed:
            return
        entry.removed = True
        del self._entries[entry.space, entry.key]
        self._counts[entry.space] -= 1
        self._by_segment[entry.slot.segment].discard(entry)
        if entry.slot.owned:
            self._space(entry.space).remove(entry)
            self._size(entry.slot.payload).remove(entry)
        if not entry.readers:
            self.free(entry.slot)

    def lease(self, entry: Entry) -> None:
        entry.readers += 1
        entry.slot.segment.pins += 1

    def release(self, entry: Entry) -> None:
        entry.readers -= 1
        entry.slot.segment.pins -= 1
        if entry.removed and not entry.readers:
            self.free(entry.slot)

    def _space(self, space: Space) -> _Shelf:
        return self._spaces.setdefault(space, _Shelf())

    def _size(self, payload: int) -> _Shelf:
        return self._sizes.setdefault(payload, _Shelf())

    # Slots

    def take(self, payload: int) -> Slot | None:
        """A free slot for a write, which ends with `give`."""
        slots = self._free.get(payload)
        if not slots:
            return None
        slot = slots.popleft()
        slot.segment.pins += 1
        return slot

    def give(self, slot: Slot, entry: Entry | None) -> None:
        """The write has ended, with a record or without."""
        slot.segment.pins -= 1
        if entry is None:
            self.free(slot)
        else:
            self.add(entry)

    def free(self, slot: Slot) -> None:
        """Last in the queue, so that a slot that just failed is not the next one tried."""
        if slot.owned and slot.segment.format is slot.format and self._strikes[slot] < _MAX_STRIKES:
            self._free.setdefault(slot.payload, deque()).append(slot)

    def strike(self, slot: Slot) -> None:
        """The slot failed. After the second time it is retired, until `forgive` or until its segment is cut anew."""
        self._strikes[slot] += 1

    def forgive(self) -> None:
        """What failed was not the slots."""
        strikes, self._strikes = self._strikes, Counter()
        for slot, number in strikes.items():
            if number >= _MAX_STRIKES:
                self.free(slot)

    @property
    def retired(self) -> int:
        return sum(1 for number in self._strikes.values() if number >= _MAX_STRIKES)

    def add_segment(self, segment: Segment, taken: Iterable[int] = ()) -> None:
        """Frees all slots but the `taken` ones, if they are ours."""
        if not segment.owned:
            return
        held = set(taken)
        for number in range(segment.format.num_slots):
            if number not in held:
                self.free(Slot(segment, segment.format, number))

    def drop_segment(self, segment: Segment) -> None:
        """Forgets all records and slots of the segment's present formatting."""
        for entry in list(self._by_segment.get(segment, ())):
            self.remove(entry)
        self._by_segment.pop(segment, None)
        for payload, slots in self._free.items():
            self._free[payload] = deque(slot for slot in slots if slot.segment is not segment)
        self._strikes = Counter({slot: n for slot, n in self._strikes.items() if slot.segment is not segment})

    # Room

    def evict_for_quota(self, space: Space, nbytes: int) -> bool:
        """Evicts the space's oldest records until it holds at most `nbytes`. False if readers hold too many."""
        shelf = self._space(space)
        while shelf.nbytes > nbytes:
            if not self._evict(shelf.oldest()):
                return False
        return True

    def evict_from_size(self, payload: int) -> bool:
        """Evicts the oldest record among slots of this size."""
        return self._evict(self._size(payload).oldest())

    def _evict(self, entry: Entry | None) -> bool:
        if entry is None:
            return False
        self.remove(entry)
        self.evictions += 1
        return True

    def claim(self, segments: Iterable[Segment], payload: int) -> Segment | None:
        """A segment of another slot size, emptied, for slots of this size: the one that has been unused longest, if
        that is longer than for any record of this size. Looks only now and then, unless nothing of this size is there.
        """
        ours = self._size(payload).oldest()
        if ours is not None:
            self._looks[payload] += 1
            if self._looks[payload] % _EVICTIONS_PER_LOOK:
                return None
        others = (s for s in segments if s.format is not None and s.format.slot_payload != payload and not s.pins)
        coldest = min(others, key=lambda s: s.last_used, default=None)
        if coldest is None or (ours is not None and ours.used < coldest.last_used):
            return None
        self.evictions += len(self._by_segment.get(coldest, ()))
        self.drop_segment(coldest)
        return coldest

    def check(self, segments: Iterable[Segment]) -> None:
        """With no operation under way: raises AssertionError unless every slot is free, holds a record, or is retired,
        and the shelves hold what the entries say."""
        for segment in segments:
            if not segment.owned or segment.format is None:
                continue
            used = [entry.slot.number for entry in self._by_segment.get(segment, ())]
            free = [slot.number for slots in self._free.values() for slot in slots if slot.segment is segment]
            retired = [s.number for s, n in self._strikes.items() if s.segment is segment and n >= _MAX_STRIKES]
            assert segment.pins == 0, (segment.file.path, segment.pins)
            assert sorted({*used, *free, *retired}) == list(range(segment.format.num_slots)), segment.file.path
            assert len(used) + len(free) + len(retired) == segment.format.num_slots, segment.file.path
        owned = [entry for entry in self._entries.values() if entry.slot.owned]
        for shelves in (self._spaces, self._sizes):
            assert sum(len(shelf.entries) for shelf in shelves.values()) == len(owned)
            assert sum(shelf.nbytes for shelf in shelves.values()) == sum(entry.slot.nbytes for entry in owned)
