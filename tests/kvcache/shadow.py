"""A cache under test with a shadow of its contents: what every slot was last written with, checked at every read."""

import math

import torch

from swa_attn.kvcache import (
    ABSENT,
    GroupSpec,
    KVCache,
    KVSequence,
    PagePool,
    SequenceCache,
    SnapshotPolicy,
    Tier,
)
from swa_attn.kvcache.radix import Run
from swa_attn.kvcache.window_pages import Snapshot

POISON = None


ENDS_AND_BRANCHES = SnapshotPolicy(slack_pages=0, fixed=())


def make_cache(windows: dict[str, int | None], page_size: int, num_pages: dict[str, int], **options) -> KVCache:
    options.setdefault("policy", ENDS_AND_BRANCHES)
    groups = [GroupSpec(name, (i,), 1, 2, 1, window) for i, (name, window) in enumerate(windows.items())]
    return KVCache(groups, page_size, num_pages, torch.float32, "cpu", "test model", **options)


class Shadow:
    """Runs sequences through a KVCache without a model. A slot's content is the tuple of all tokens up to it."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.slots = {name: [[POISON] * cache.page_size for _ in range(p.num_pages)] for name, p in cache.pools.items()}
        self.tokens: dict[KVSequence, list[int]] = {}

    def begin(self, tokens: list[int], salt: str = "") -> KVSequence:
        sequence = self.cache.begin(self.cache.key(tokens, salt))
        self.tokens[sequence] = list(tokens)
        self.check_readable(sequence)
        return sequence

    def compute(self, sequence: KVSequence, count: int) -> bool:
        """One step: pages, reads of all that the step's queries see, writes, commit. False when a pool is full."""
        start, tokens = sequence.num_computed, self.tokens[sequence]
        if not self.cache.extend(sequence, count):
            return False
        self.check_readable(sequence)
        for position in range(start, start + count):
            page, offset = divmod(position, self.cache.page_size)
            for name, table in sequence.block_tables.items():
                assert table[page] != ABSENT
                self.slots[name][table[page]][offset] = tuple(tokens[: position + 1])
        self.check_window_bound(sequence, count)
        self.cache.commit(sequence, tokens[start : start + count])
        self.poison_free_pages()
        return True

    def run(self, tokens: list[int], chunk: int = 7, salt: str = "") -> int:
        """A whole request, alone; returns the tokens that came from the cache."""
        sequence = self.begin(tokens, salt)
        while sequence.num_computed < len(tokens):
            assert self.compute(sequence, min(chunk, len(tokens) - sequence.num_computed))
        self.end(sequence)
        return sequence.hit_tokens

    def end(self, sequence: KVSequence) -> None:
        self.cache.end(sequence)
        del self.tokens[sequence]
        self.poison_free_pages()

    def check_readable(self, sequence: KVSequence) -> None:
        """Everything that the next query sees is there, and is what this sequence's tokens give."""
        tokens, end = self.tokens[sequence], sequence.num_computed
        for name, table in sequence.block_tables.items():
            for position in range(self.cache.pools[name].spec.first_visible(end), end):
                page, offset = divmod(position, self.cache.page_size)
                assert table[page] != ABSENT, (name, position)
                assert self.slots[name][table[page]][offset] == tuple(tokens[: position + 1]), (name, position)

    def check_window_bound(self, sequence: KVSequence, chunk: int) -> None:
        """Windowed use is O(window + chunk), whatever the length (called while a step is in flight)."""
        page_size = self.cache.page_size
        for name, pool in self.cache.pools.items():
            if pool.spec.window is not None:
                offset = sequence.num_computed % page_size
                bound = math.ceil((pool.spec.window - 1) / page_size) + math.ceil((offset + chunk) / page_size)
                bound += self.cache.policy.slack_pages
                assert sequence.num_pages(name) <= bound

    def poison_free_pages(self) -> None:
        for name, pool in self.cache.pools.items():
            for page in filter(pool.is_free, range(pool.num_pages)):
                self.slots[name][page] = [POISON] * self.cache.page_size


def runs_of(cache: SequenceCache) -> list[Run]:
    """All runs of the cache's tree, parents first."""
    found = [cache.prefixes.tree.root]
    for run in found:
        found.extend(run.children.values())
    return found[1:]


def check_invariants(cache: SequenceCache) -> None:
    """Every count equals what a recount of the holders gives, and no page has two owners. Transfers must have ended."""
    runs = runs_of(cache)
    for run in runs:
        check_run(cache, run)
    for tier, shelf in enumerate(cache.shelves):
        for i, pool in enumerate(shelf.pools):
            check_pool(cache, runs, tier, i, pool)
        if shelf.budget_bytes is not None:
            assert shelf.used_bytes <= shelf.budget_bytes
    check_snapshots(cache, runs)
    for sequence in cache._live:
        if not sequence.is_loading:
            for name, table in sequence.block_tables.items():
                first = sequence.first_pages[name]
                assert all(page == ABSENT for page in table[:first]) and ABSENT not in table[first:]


def check_run(cache: SequenceCache, run: Run) -> None:
    assert run.keys and run.parent.children[run.keys[0]] is run and run.start == run.parent.stop
    is_root = run.parent is cache.prefixes.tree.root
    for tier in range(len(cache.shelves)):
        assert not run.coming[tier] and len(run.pages[tier]) <= len(run.keys)
        if run.pages[tier]:
            assert run in cache.prefixes.full.order[tier]
            assert is_root or len(run.parent.pages[tier]) == len(run.parent.keys), "a prefix has a hole"
        elif cache._full is not None:
            assert run not in cache.prefixes.full.order[tier]
    live = [s for s in cache._live if s.run is not None and run in s.run.up()]
    assert run.pins[Tier.DEVICE] == len(live)
    if cache._full is not None:
        assert max(map(len, run.pages)) == len(run.keys), "a run knows pages that are nowhere"
    assert run.window_ends == sorted(index for number, index in run.windows if number == 0)
    for (number, index), page in run.windows.items():
        assert (page.group, page.index, page.run) == (number, index, run) and page.is_somewhere
        assert page.key == run.keys[index - run.start]


def check_pool(cache: SequenceCache, runs: list[Run], tier: int, group: int, pool: PagePool) -> None:
    """Each page that is not free has exactly one owner, and those in use are counted."""
    name = pool.spec.name
    number = next((n for n, (g, _) in enumerate(cache._windows.groups) if g == group), None)
    owned: list[int] = []
    in_use = 0
    if group == cache._full:
        owned += [page for run in runs for page in run.pages[tier]]
        in_use += sum(len(run.pages[tier]) for run in runs if run.pins[tier])
    if number is not None:
        pages = [p for run in runs for p in run.windows.values() if p.group == number and p.ids[tier] is not None]
        owned += [p.ids[tier] for p in pages]
        in_use += sum(p.users[tier] > 0 for p in pages)
        for page in pages:
            holders = [s for s in snapshots_of(runs) if s.in_tier[tier] and page in s.pages[number]]
            sequences = [s for s in cache._live if s.windows.get((number, page.index)) is page] if tier == 0 else []
            assert page.holders[tier] == len(holders) + len(sequences) > 0
            assert page.users[tier] == len(sequences)
    if tier == Tier.DEVICE:
        for sequence in cache._live:
            table = sequence.block_tables.get(name, [])
            shared = {index for n, index in sequence.windows if n == number}
            first = sequence.inserted if group == cache._full else 0
            own = [page for i, page in enumerate(table) if page != ABSENT and i >= first and i not in shared]
            owned += own
            in_use += len(own)
    assert len(owned) == len(set(owned)), f"pool {name!r}: a page has two owners"
    assert all(not pool.is_free(page) for page in owned)
    assert pool.num_used == len(owned)
    assert pool.num_in_use == in_use <= pool.peak_in_use
    assert pool.num_pages is None or pool.peak_in_use <= pool.num_pages


def snapshots_of(runs: list[Run]) -> list[Snapshot]:
    """All that are stored, slack too."""
    ends = [s for run in runs for s in run.snapshots.values()]
    return ends + [s.slack for s in ends if s.slack is not None]


def check_snapshots(cache: SequenceCache, runs: list[Run]) -> None:
    stored = set(snapshots_of(runs))
    for tier in range(len(cache.shelves)):
        queued = {s for queue in cache._windows.queues[tier].values() for s in queue}
        assert queued == {s for s in stored if s.in_tier[tier]}
        for reason, queue in cache._windows.queues[tier].items():
            assert all(s.reason is reason for s in queue)
            assert cache._windows._bytes[tier][reason] == sum(cache._windows._size(s, tier) for s in queue)
    for run in runs:
        for end, snapshot in run.snapshots.items():
            assert snapshot.end == end and snapshot.run is run and run.start < end <= run.stop and any(snapshot.in_tier)
