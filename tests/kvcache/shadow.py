"""A cache under test with a shadow of its contents: what every slot was last written with, checked at every read."""

import math
from collections import Counter

import torch

from swa_attn.kvcache import ABSENT, GroupSpec, KVCache, KVSequence

POISON = None


def make_cache(windows: dict[str, int | None], page_size: int, num_pages: dict[str, int], **options) -> KVCache:
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
                assert sequence.num_pages(name) <= bound

    def poison_free_pages(self) -> None:
        for name, pool in self.cache.pools.items():
            for page in pool._free:
                self.slots[name][page] = [POISON] * self.cache.page_size


def check_invariants(cache: KVCache) -> None:
    """Every count equals what a recount of the holders gives, and no page is both free and held."""
    nodes = set(cache.tree._nodes.values())
    for name, pool in cache.pools.items():
        users = Counter(page for s in cache._live for page in s.block_tables[name] if page != ABSENT)
        keepers: Counter = Counter()
        if pool is cache._full:
            keepers.update(node.page for node in nodes)
        if pool in cache._snapshot_pools:
            index = cache._snapshot_pools.index(pool)
            keepers.update(page for node in nodes if node.snapshot for page in node.snapshot[index])
        assert [users[p] for p in range(pool.num_pages)] == pool._users
        assert [keepers[p] for p in range(pool.num_pages)] == pool._keepers
        held = set(users) | set(keepers)
        assert sorted(pool._free) == sorted(set(range(pool.num_pages)) - held)
        assert pool.num_in_use == len(users)
        assert pool.num_cached == len(held) - len(users)
        assert pool.num_in_use <= pool.peak_in_use <= pool.num_pages
    children = Counter(node.parent for node in nodes if node.parent is not None)
    pins = Counter(s.node for s in cache._live if s.node is not None)
    for node in nodes:
        assert node.num_children == children[node]
        assert node.num_pins == pins[node]
        assert node.parent is None or node.parent in nodes
    assert set(pins) <= nodes
    assert set(cache.tree._snapshots) == {node for node in nodes if node.snapshot is not None}
    for sequence in cache._live:
        for name, table in sequence.block_tables.items():
            first = sequence.first_pages[name]
            assert all(page == ABSENT for page in table[:first]) and ABSENT not in table[first:]
