"""Runs against the real cache, with hits and bytes that can be counted by hand."""

import random

import pytest
import torch

from swa_attn.kvcache import GroupSpec, Planner, SnapshotPolicy, Tier, plan_rebuild
from swa_attn.replay.drive import FewestTokens, Setup, one_group, replay
from swa_attn.replay.figures import cache_figures, structural
from swa_attn.replay.traces import Prompt
from swa_attn.replay.workload import Workload, infinite_cache

PAGE = 64
FULL = GroupSpec("full", (0,), 2, 64, 32)
SWA = GroupSpec("swa", (1, 2), 2, 64, 32, window=129)
TOKEN = 2 * (64 + 32) * 2  # bytes of a layer
PLENTY = {Tier.DEVICE: 10**9, Tier.HOST: 10**9, Tier.DISK: 10**9}
ENDS_ONLY = SnapshotPolicy(slack_pages=0, fixed=())


def setup(groups=(FULL, SWA), policy=ENDS_ONLY, rebuild=True, planner=FewestTokens, lower_dtype=None) -> Setup:
    return Setup(groups, PAGE, torch.bfloat16, policy, lambda: planner(rebuild=rebuild), lower_dtype)


def workload(*prompts: Prompt) -> Workload:
    return Workload(prompts, PAGE, PAGE)


def growing(num_turns: int) -> Workload:
    """Each prompt begins with the one before: four pages more, and ten tokens that fill no page."""
    return workload(*(Prompt(256 * n + 10, ((1, 4 * n),)) for n in range(1, num_turns + 1)))


def test_a_growing_conversation_hits_on_all_but_its_last_turn():
    run = replay(setup().cache(PLENTY), growing(5))
    assert (run.num_requests, run.num_driven, run.too_large) == (4, 5, 0)
    assert run.input_tokens == 522 + 778 + 1034 + 1290
    assert run.hit_tokens == 256 + 512 + 768 + 1024 == infinite_cache(growing(5)).hit_tokens
    assert run.rebuild_tokens == 0 and run.count("snapshot_misses") == 0
    assert run.hit_rate == pytest.approx(2560 / 3624)
    assert run.counts("hit_tokens_by_tier") == {Tier.DEVICE: 2560, Tier.HOST: 0, Tier.DISK: 0}
    assert run.counts("read_bytes") == {"full": 2560 * TOKEN, "swa": 4 * 128 * 2 * TOKEN}
    assert run.counts("written_bytes") == {"full": 1024 * TOKEN, "swa": 4 * 128 * 2 * TOKEN}


@pytest.mark.parametrize("lower_dtype", [None, torch.float8_e4m3fn])
def test_the_structural_ratio_counts_each_byte_once(lower_dtype):
    s = setup(lower_dtype=lower_dtype)
    found = structural(s, replay(s.cache({Tier.DEVICE: 1 << 60, Tier.HOST: 1 << 60}), growing(5)))
    page = PAGE * TOKEN if lower_dtype is None else PAGE * TOKEN // 2 + 2 * 2 * 4  # with two scales per head
    windows = 4 * 2 * PAGE * 2 * TOKEN
    assert found["read"]["aware_bytes"] == 40 * page + windows
    assert found["written"]["aware_bytes"] == 16 * page + windows
    assert found["read"]["oblivious_bytes"] == 2560 * 3 * TOKEN
    assert found["written"]["oblivious_bytes"] == 1024 * 3 * TOKEN
    assert found["total"]["ratio"] == pytest.approx(3584 * 3 * TOKEN / (56 * page + 2 * windows))
    assert found["limit"] == pytest.approx(3 * PAGE * TOKEN / page)


def test_without_windows_the_same_bytes_make_one_group():
    wide = GroupSpec("swa", (1, 2), 8, 128, 96, window=129)
    group = one_group((FULL, wide))
    assert group.window is None
    assert group.bytes_per_token(torch.bfloat16) == sum(g.bytes_per_token(torch.bfloat16) for g in (FULL, wide))
    run = replay(setup().without_windows().cache(PLENTY), growing(5))
    assert run.hit_tokens == 2560 and run.counts("read_bytes") == {"all": 2560 * 3 * TOKEN}


def prompt(name: int, num_pages: int = 4) -> Prompt:
    return Prompt(num_pages * PAGE + 10, ((1000 * name, num_pages),))


@pytest.mark.parametrize("order, hits", [("xABA", [0, 0, 4]), ("xABCA", [0, 0, 0, 0]), ("xABCC", [0, 0, 0, 4])])
def test_the_least_recently_used_prompt_makes_room(order, hits):
    """Room for nine pages: two prompts' four each, and one more that is being written."""
    s = setup(groups=(FULL,))
    prompts = [prompt(ord(name)) for name in order]
    run = replay(s.cache({Tier.DEVICE: 9 * PAGE * TOKEN}), workload(*prompts))
    if len(order) < 5:  # nothing warms up
        hits = [0, *hits]
    assert run.hit_tokens == sum(hits) * PAGE


def test_what_left_the_device_is_found_below():
    budgets = {Tier.DEVICE: 9 * PAGE * TOKEN, Tier.HOST: 14 * PAGE * TOKEN, Tier.DISK: 99 * PAGE * TOKEN}
    run = replay(setup(groups=(FULL,)).cache(budgets), workload(*(prompt(ord(name)) for name in "ABCDBA")))
    assert run.hit_tokens == 2 * 4 * PAGE
    by_tier = run.counts("hit_tokens_by_tier")
    assert by_tier[Tier.DEVICE] < 8 * PAGE and by_tier[Tier.DISK] > 0 and sum(by_tier.values()) == 8 * PAGE
    moved = run.counts("moved_bytes")
    assert moved[Tier.HOST, Tier.DEVICE, "full"] == (by_tier[Tier.HOST] + by_tier[Tier.DISK]) * TOKEN
    assert moved[Tier.DISK, Tier.HOST, "full"] == by_tier[Tier.DISK] * TOKEN
    figures = cache_figures(setup(groups=(FULL,)), run)
    assert figures["moved_bytes"] == sum(moved.values())
    assert figures["resident_tokens"] == {"device": 8 * PAGE, "host": 14 * PAGE, "disk": 16 * PAGE}


def test_a_request_larger_than_the_device_is_computed():
    run = replay(setup().cache({Tier.DEVICE: 60 * PAGE * TOKEN}), workload(prompt(1), prompt(2, 100), prompt(2, 100)))
    assert (run.too_large, run.hit_tokens, run.input_tokens) == (2, 0, 266 + 2 * 6410)


def test_a_missing_window_is_rebuilt_or_costs_the_match():
    prompts = [Prompt(40 * PAGE + 1, ((1, 40),)), Prompt(30 * PAGE + 1, ((1, 20), (100, 10)))]
    rebuilt = replay(setup().cache(PLENTY), workload(*prompts))
    equivalents = plan_rebuild([None, 129, 129], 20 * PAGE, 0, PAGE).token_equivalents
    assert (rebuilt.hit_tokens, rebuilt.rebuild_tokens) == (20 * PAGE, equivalents)
    assert rebuilt.recomputed_tokens == rebuilt.input_tokens - 20 * PAGE + equivalents
    assert (rebuilt.count("snapshot_misses"), rebuilt.count("num_rebuilds")) == (1, 1)
    assert rebuilt.counts("gap_histogram")[2048] == 1

    strict = replay(setup(rebuild=False).cache(PLENTY), workload(*prompts))
    assert (strict.hit_tokens, strict.rebuild_tokens, strict.count("snapshot_misses")) == (0, 0, 1)


def test_only_the_planner_by_time_leaves_far_pages_alone():
    class SlowDisk(Planner):
        def __init__(self, rebuild):
            super().__init__(disk_bytes_per_second=1.0, rebuild=rebuild)

    class SlowDiskFewestTokens(FewestTokens, SlowDisk):
        pass

    budgets = {Tier.DEVICE: 6 * PAGE * TOKEN, Tier.HOST: 6 * PAGE * TOKEN, Tier.DISK: 99 * PAGE * TOKEN}
    load = workload(*(prompt(ord(name)) for name in "ABCA"))
    by_time, by_tokens = (
        replay(setup(groups=(FULL,), planner=planner).cache(budgets), load)
        for planner in (SlowDisk, SlowDiskFewestTokens)
    )
    assert (by_time.hit_tokens, by_tokens.hit_tokens) == (0, 4 * PAGE)


def test_a_busy_small_cache_keeps_what_it_names():
    """Copies end at once here, which no real transfer does: a page must be held before it is copied."""
    rng = random.Random(3)
    chains = [[1]]
    for name in range(400):
        chain = rng.choice(chains[-30:])
        chains.append(
            [*chain[: rng.randint(1, len(chain))], *range(100 * name + 2, 100 * name + 2 + rng.randint(1, 9))][:30]
        )
    prompts = [Prompt(64 * len(c) + rng.choice([0, 9]), tuple((i, 1) for i in c)) for c in chains]
    budgets = {Tier.DEVICE: 80 * PAGE * TOKEN, Tier.HOST: 150 * PAGE * TOKEN, Tier.DISK: 700 * PAGE * TOKEN}
    cache = setup(policy=SnapshotPolicy()).cache(budgets)
    run = replay(cache, workload(*prompts))
    assert run.too_large == 0 and run.hit_tokens > 0.4 * run.input_tokens and run.count("num_rebuilds") > 5
    assert all(run.last.resident_bytes[tier] <= budget for tier, budget in budgets.items())
    waiting = list(cache.prefixes.tree.root.children.values())
    while waiting:
        node = waiting.pop()
        waiting += node.children.values()
        assert all(any(snapshot.in_tier) for snapshot in node.snapshots.values())
        assert all(page.is_somewhere for page in node.windows.values())
        assert not any(any(page.users) for page in node.windows.values()) and not any(node.pins)


def test_two_runs_are_the_same():
    prompts = [Prompt(64 * n + 7, ((1, n // 2), (10 * n, n - n // 2))) for n in (4, 9, 30, 12, 9, 4, 22, 30, 12, 9)] * 3
    budgets = {Tier.DEVICE: 80 * PAGE * TOKEN, Tier.HOST: 80 * PAGE * TOKEN}

    def figures():
        s = setup(policy=SnapshotPolicy())
        found = cache_figures(s, replay(s.cache(budgets), workload(*prompts)))
        return {name: value for name, value in found.items() if name != "requests_per_minute"}

    assert figures() == figures()
