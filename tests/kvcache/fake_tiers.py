"""A cache over memories that are dictionaries, with transfers that end when a seeded scheduler says so, or fail.

The contents of a slot are derived from all tokens up to it. Whatever a sequence may read is compared with that: so a page
that was overwritten too early, read too early, mixed up or made up is found at once.
"""

import random
from zlib import crc32

import torch

from swa_attn.kvcache import (
    ABSENT,
    GroupSpec,
    KVSequence,
    PagePool,
    Planner,
    PrefixKey,
    SequenceCache,
    SnapshotPolicy,
    Tier,
)
from swa_attn.kvcache.shelf import Shelf
from swa_attn.kvcache.transfer import Mover, Transfer

POISON = -1
TAINT = -2  # what a sequence writes that is going wrong, and what those write that have read it
GROUPS = (GroupSpec("full", (0, 3), 1, 1, 1), GroupSpec("swa", (1, 2, 4), 1, 1, 1, 7))


class FakeMover(Mover):
    """Transfers between device and host happen in order, those with the store in any order; all of them late."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.memory: dict[tuple[Tier, int], dict[int, list[int]]] = {}
        self.records: dict[tuple[int, object], list[int]] = {}
        self.copies: list[Transfer] = []
        self.store: list[Transfer] = []
        self.ended: list[tuple[Transfer, int]] = []
        self.lose = self.refuse = 0.0  # shares of reads that miss and writes that fail
        self.stuck = False  # the store does nothing at all
        self.moved: list[Transfer] = []
        self.refreshed: set[tuple[int, object]] = set()
        self.faults = 0

    @property
    def num_pending(self) -> int:
        return len(self.copies) + len(self.store) + len(self.ended)

    def submit(self, transfer: Transfer) -> None:
        self.moved.append(transfer)
        for page in transfer.target_ids if transfer.target is not Tier.DISK else ():
            self.pages(transfer.target, transfer.group)[page] = None  # garbage until it has arrived
        (self.store if Tier.DISK in (transfer.source, transfer.target) else self.copies).append(transfer)

    def poll(self, timeout: float | None = 0.0) -> bool:
        if timeout != 0.0 and not self.ended:
            self.advance() or (timeout is None and self.finish_one())
        ended, self.ended = self.ended, []
        for transfer, count in ended:
            transfer.done(count)
        return bool(ended)

    def wait_for_layer(self, layer: int) -> None:
        while any(t.target is Tier.DEVICE for t in self.copies):
            self._copy(self.copies.pop(0))

    def wait_for_host(self) -> None:
        while any(t.target is Tier.HOST for t in self.copies):
            self._copy(self.copies.pop(0))

    def known(self, group, keys) -> int:
        return next((i for i, key in enumerate(keys) if (group, key) not in self.records), len(keys))

    def discard(self, tier, group, keys) -> None:
        if tier == Tier.DISK:
            for key in keys:
                self.records.pop((group, key), None)

    def refresh(self, group, keys) -> None:
        self.refreshed.update((group, key) for key in keys)

    def pages(self, tier: Tier, group: int) -> dict[int, list[int]]:
        return self.memory.setdefault((tier, group), {})

    def advance(self) -> bool:
        """One transfer that can end does; False when there is none."""
        choices = [self.copies] if self.copies else []
        ready = [t for t in self.store if not self._must_wait(t)]
        if ready and not self.stuck:
            choices.append(ready)
        if not choices:
            return False
        chosen = self.random.choice(choices)
        if chosen is self.copies:
            self._copy(self.copies.pop(0))
        else:
            transfer = self.random.choice(ready)
            self.store.remove(transfer)
            (self._write if transfer.target is Tier.DISK else self._read)(transfer)
        return True

    def finish_one(self) -> bool:
        stuck, self.stuck = self.stuck, False
        self.advance()
        self.stuck = stuck
        return True

    def reset(self) -> None:
        while self.copies:
            self._copy(self.copies.pop(0))
        for transfer in self.store:
            (self._write if transfer.target is Tier.DISK else self._read)(transfer)
        self.store.clear()
        self.ended.clear()

    def drain(self) -> None:
        while self.num_pending:
            self.finish_one()
            self.poll()

    def _must_wait(self, transfer: Transfer) -> bool:
        """A record is written from host pages only after the copies into them, which were submitted before."""
        return transfer.target is Tier.DISK and any(
            t.target is Tier.HOST and t.group == transfer.group and set(t.target_ids) & set(transfer.source_ids)
            for t in self.copies
        )

    def _copy(self, transfer: Transfer) -> None:
        source, target = self.pages(transfer.source, transfer.group), self.pages(transfer.target, transfer.group)
        for a, b in zip(transfer.source_ids, transfer.target_ids, strict=True):
            target[b] = list(source[a])
        self.ended.append((transfer, len(transfer.keys)))

    def _write(self, transfer: Transfer) -> None:
        source, count = self.pages(Tier.HOST, transfer.group), 0
        for key, page in zip(transfer.keys, transfer.source_ids, strict=True):
            if self._fault(self.refuse):
                break
            self.records[transfer.group, key] = list(source[page])
            count += 1
        self.ended.append((transfer, count))

    def _read(self, transfer: Transfer) -> None:
        target, count = self.pages(Tier.HOST, transfer.group), 0
        for key, page in zip(transfer.keys, transfer.target_ids, strict=True):
            record = self.records.get((transfer.group, key))
            if record is None or self._fault(self.lose):
                self.records.pop((transfer.group, key), None)
                break
            target[page] = list(record)
            count += 1
        self.ended.append((transfer, count))

    def _fault(self, share: float) -> bool:
        happens = self.random.random() < share
        self.faults += happens
        return happens


class Simulation:
    """Sequences on a cache over fake tiers. `now` is the clock of deadlines."""

    def __init__(
        self,
        seed: int,
        *,
        device=(40, 24),
        host: tuple[int, int] | None = (40, 20),
        disk: int | None = 200_000,
        page_size: int = 4,
        groups=GROUPS,
        **options,
    ) -> None:
        self.random = random.Random(seed)
        self.mover = FakeMover(self.random)
        self.page_size, self.groups = page_size, groups
        self.now = 0.0
        options.setdefault("policy", SnapshotPolicy(slack_pages=1, fixed=(8, 24)))
        options.setdefault("planner", Planner(deadline=5.0))
        sizes = [page_size * g.bytes_per_token(torch.float32) for g in groups]
        shelves = [Shelf(Tier.DEVICE, self._pools(sizes, device))]
        if host is not None:
            shelves.append(Shelf(Tier.HOST, self._pools(sizes, host)))
        if disk is not None:
            shelves.append(Shelf(Tier.DISK, self._pools(sizes, (None,) * len(groups)), disk))
        self.cache = SequenceCache(
            groups, page_size, shelves, self.mover, torch.float32, "fake", clock=lambda: self.now, **options
        )
        self.tokens: dict[KVSequence, list[int]] = {}
        self.contents: dict[tuple[int, ...], list[int]] = {}
        self.toxic: set[KVSequence] = set()  # whose contents are tainted
        self.checked = 0  # slots compared

    def _pools(self, sizes, counts) -> list[PagePool]:
        return [PagePool(g, size, n) for g, size, n in zip(self.groups, sizes, counts, strict=True)]

    def expected(self, tokens: list[int]) -> list[int]:
        """What the slots of a sequence hold."""
        key = tuple(tokens)
        if key not in self.contents:
            chain, state = [], 0
            for token in tokens:
                state = crc32(token.to_bytes(4, "little"), state)
                chain.append(state)
            self.contents[key] = chain
        return self.contents[key]

    def key(self, tokens: list[int]) -> PrefixKey:
        names = self.expected(tokens)[self.page_size - 1 :: self.page_size]
        return PrefixKey(b"", tuple(name.to_bytes(16, "little") for name in names), len(tokens))

    def begin(self, tokens: list[int]) -> KVSequence:
        sequence = self.cache.begin(self.key(tokens))
        self.tokens[sequence] = list(tokens)
        return sequence

    def is_ready(self, sequence: KVSequence) -> bool:
        """After a rebuild, if the plan asks for one."""
        if sequence.is_loading:
            return False
        if sequence.needs_rebuild:
            self._rebuild(sequence)
        return True

    def compute(self, sequence: KVSequence, count: int) -> bool:
        """A step of the model: waits for what was promised, reads all that its queries see, writes; False without room."""
        start, tokens = sequence.num_computed, self.tokens[sequence]
        if not self.cache.extend(sequence, count):
            return False
        self.mover.wait_for_layer(0)
        self.check(sequence)
        self._write(sequence, range(len(self.groups)), start, start + count)
        self.cache.commit(sequence, tokens[start : start + count])
        return True

    def run(self, tokens: list[int], chunk: int = 16, settle: bool = True) -> KVSequence:
        """A whole request, alone."""
        sequence = self.begin(tokens)
        while not self.is_ready(sequence):
            self.now += 0.01
            self.cache.poll(timeout=None)
        while sequence.num_computed < len(tokens):
            assert self.compute(sequence, min(chunk, len(tokens) - sequence.num_computed))
        self.end(sequence)
        if settle:
            self.mover.drain()
        return sequence

    def end(self, sequence: KVSequence) -> None:
        self.cache.end(sequence)
        del self.tokens[sequence]

    def fail(self, sequence: KVSequence) -> None:
        """As a request whose results turned out wrong."""
        rebuild = sequence.plan.rebuild
        self.cache.end(sequence, keep=False)
        self.cache.forget(
            self.key(self.tokens.pop(sequence)), sequence.hit_tokens if rebuild is None else rebuild.first[0]
        )
        self.toxic.discard(sequence)

    def check(self, sequence: KVSequence) -> None:
        """All that the next query sees is there and is right."""
        end = sequence.num_computed
        expected = self.expected(self.tokens[sequence])
        for i, group in enumerate(self.groups):
            first, table = group.first_visible(end), sequence.block_tables[group.name]
            for page in range(first // self.page_size, -(-end // self.page_size)):
                low, high = max(first, page * self.page_size), min(end, (page + 1) * self.page_size)
                offset = page * self.page_size
                found = self._page(i, table[page])[low - offset : high - offset]
                if TAINT in found:
                    self.toxic.add(sequence)
                    continue
                assert found == expected[low:high], f"group {group.name}, page {page} of {self.tokens[sequence]}"
                self.checked += high - low

    def _page(self, group: int, page_id: int) -> list[int]:
        assert page_id != ABSENT
        device = self.cache.shelves[0].pools[group].num_pages
        tier, page = (Tier.DEVICE, page_id) if page_id < device else (Tier.HOST, page_id - device)
        contents = self.mover.pages(tier, group)[page]
        assert contents is not None, "read before it has arrived"
        return contents

    def _write(self, sequence: KVSequence, groups, start: int, end: int, exact_from: int = 0) -> None:
        expected = self.expected(self.tokens[sequence])
        for i in groups:
            table, memory = sequence.block_tables[self.groups[i].name], self.mover.pages(Tier.DEVICE, i)
            for position in range(start, end):
                page, offset = divmod(position, self.page_size)
                if offset == 0 or memory.get(table[page]) is None:
                    memory[table[page]] = [POISON] * self.page_size
                right = TAINT if sequence in self.toxic else expected[position]
                memory[table[page]][offset] = right if position >= exact_from else POISON

    def _rebuild(self, sequence: KVSequence) -> None:
        """Only whole pages of the window at the end are what a cold run has; what is before them is scratch."""
        self.mover.wait_for_layer(0)
        plan = sequence.plan.rebuild
        full = next(i for i, g in enumerate(self.groups) if g.window is None)
        table = sequence.block_tables[self.groups[full].name]
        expected = self.expected(self.tokens[sequence])
        for page in range(plan.end // self.page_size):
            start = page * self.page_size
            found = self._page(full, table[page])
            if TAINT in found:
                self.toxic.add(sequence)
            else:
                assert found == expected[start : start + self.page_size]
        for i, group in enumerate(self.groups):
            if group.window is not None and group.window > 1:
                exact = plan.end - -(-(group.window - 1) // self.page_size) * self.page_size
                self._write(sequence, [i], plan.first[0], plan.end, max(plan.first[0], exact))
        self.cache.rebuilt(sequence)
