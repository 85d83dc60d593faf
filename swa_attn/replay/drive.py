"""Runs a workload through a cache, as an engine would, and accounts for every request."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..kvcache import CacheStats, GroupSpec, KVCache, Option, Planner, PrefixKey, SequenceCache, SnapshotPolicy, Tier
from .workload import Workload

CHUNK = 16_384  # tokens of a prompt that are computed in one step


class FewestTokens(Planner):
    """Uses whatever is cached, at whatever distance: for comparing caches by what they hold, not by what links carry."""

    def choose(self, options: Sequence[Option]) -> Option:
        return min(options, key=lambda o: (rebuild_tokens(o) - o.resume, o.seconds))


def rebuild_tokens(option: Option) -> float:
    """What the option's rebuild costs, in tokens of the whole model."""
    return option.rebuild.token_equivalents if option.rebuild else 0.0


@dataclass(frozen=True)
class Setup:
    """A cache to be driven: everything but its budgets.

    `planner` and `policy` are made anew for every run.
    """

    groups: tuple[GroupSpec, ...]
    page_size: int
    dtype: torch.dtype
    policy: SnapshotPolicy
    planner: Callable[[], Planner]
    lower_dtype: torch.dtype | None = None

    def cache(self, budgets: Mapping[Tier, int]) -> SequenceCache:
        return KVCache.virtual(
            self.groups,
            self.page_size,
            self.dtype,
            budgets,
            policy=self.policy,
            planner=self.planner(),
            lower_dtype=self.lower_dtype,
        )

    @property
    def bytes_per_token(self) -> dict[str, int]:
        """Of each group, as the device keeps them."""
        return {group.name: group.bytes_per_token(self.dtype) for group in self.groups}

    def without_windows(self) -> "Setup":
        """The cache that knows of no windows: one full group with the same bytes per token."""
        return Setup(
            (one_group(self.groups),), self.page_size, self.dtype, SnapshotPolicy(), self.planner, self.lower_dtype
        )


def one_group(groups: Sequence[GroupSpec]) -> GroupSpec:
    """Full attention over all layers' keys and values, seen as one layer with one head: heads may differ by group."""
    k = sum(len(g.layers) * g.num_kv_heads * g.head_dim for g in groups)
    v = sum(len(g.layers) * g.num_kv_heads * g.v_head_dim for g in groups)
    return GroupSpec("all", (0,), 1, k, v)


@dataclass(frozen=True)
class Replayed:
    """A finished run. Everything but `seconds` and `last` is about the requests after the warm-up."""

    num_requests: int
    input_tokens: int
    hit_tokens: int  # not computed at full depth
    rebuild_tokens: float  # token-equivalents of window rebuilds
    too_large: int  # requests that the device could not hold even alone; what it does not hold is computed all the same
    first: CacheStats
    last: CacheStats
    seconds: float
    num_driven: int

    @property
    def recomputed_tokens(self) -> float:
        return self.input_tokens - self.hit_tokens + self.rebuild_tokens

    @property
    def hit_rate(self) -> float:
        return 1 - self.recomputed_tokens / self.input_tokens if self.input_tokens else 0.0

    def count(self, name: str) -> int:
        """A counter of `CacheStats`, over the counted requests."""
        return getattr(self.last, name) - getattr(self.first, name)

    def counts(self, name: str) -> dict:
        """The same for counters by tier, group or size."""
        before = getattr(self.first, name)
        return {key: value - before.get(key, 0) for key, value in getattr(self.last, name).items()}


def replay(cache: SequenceCache, workload: Workload, tick: Callable[[int], None] = lambda _: None) -> Replayed:
    """Every request of a workload, one after another."""
    begun = time.perf_counter()
    first = cache.stats()
    input_tokens = hit_tokens = too_large = 0
    rebuilt = 0.0
    for number, prompt in enumerate(workload.prompts):
        if number == workload.num_warm_up:
            first = cache.stats()
            input_tokens = hit_tokens = too_large = 0
            rebuilt = 0.0
        input_tokens += prompt.num_tokens
        if cache.fits(prompt.num_tokens) is not None:
            too_large += 1
        else:
            served = serve(cache, workload.key(prompt))
            hit_tokens += served.hit_tokens
            rebuilt += served.rebuild_tokens
            too_large += not served.fitted
        tick(number + 1)
    return Replayed(
        len(workload.prompts) - workload.num_warm_up,
        input_tokens,
        hit_tokens,
        rebuilt,
        too_large,
        first,
        cache.stats(),
        time.perf_counter() - begun,
        len(workload.prompts),
    )


class Served(NamedTuple):
    """What one prompt found in the cache, and whether all of it could be held."""

    hit_tokens: int
    rebuild_tokens: float
    fitted: bool


def serve(cache: SequenceCache, key: PrefixKey) -> Served:
    """One prompt from its lookup to the end of its prefill."""
    sequence = cache.begin(key)
    if sequence.needs_rebuild:
        cache.rebuilt(sequence)
    hit, equivalents = sequence.hit_tokens, rebuild_tokens(sequence.plan.chosen)
    count = CHUNK
    while count and sequence.num_computed < key.num_tokens:
        count = min(count, key.num_tokens - sequence.num_computed)
        if cache.extend(sequence, count):
            cache.commit(sequence, range(count))
        else:
            count //= 2  # a step's windows need room as well
    fitted = sequence.num_computed == key.num_tokens
    cache.end(sequence)
    return Served(hit, equivalents, fitted)
