"""The ways in which tiers fall out of step with each other, one test per case, and what a node knows of itself."""

from types import SimpleNamespace

import pytest
import torch
from fake_tiers import GROUPS, Simulation
from shadow import check_invariants, runs_of

from swa_attn.kvcache import Action, PageState, Planner, SnapshotPolicy, Tier, WritePolicy
from swa_attn.kvcache.hashing import namespace_digest
from swa_attn.kvcache.spec import GroupSpec

ENDS = SnapshotPolicy(slack_pages=0, fixed=())


class MostReuse(Planner):
    """Whatever it takes: what is tested here is the taking."""

    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


def text(seed: int, length: int) -> list[int]:
    return [seed * 1000 + i for i in range(length)]


def simulation(**options) -> Simulation:
    options = {"planner": MostReuse(rebuild=False), "policy": ENDS, "device": (40, 40), "host": (400, 100), **options}
    return Simulation(1, **{"disk": 10**9, **options})


def forget(tiers: Simulation, tier: Tier) -> None:
    """Everything that is not in use leaves a tier, as if others had needed the room."""
    prefixes = tiers.cache.prefixes
    for group, pool in enumerate(tiers.cache.shelves[tier].pools):
        while pool.num_used > pool.num_in_use:
            assert prefixes._evict_group(tier, group, pool.num_used)
    tiers.mover.drain()


def hit(tiers: Simulation, tokens: list[int]) -> dict[Tier, int]:
    """A request for `tokens`, its contents checked; returns what was hit, by tier."""
    return tiers.run(tokens).hit_tokens_by_tier


class TestDeviceCompleteHostDeficient:
    """A tail fetched from below, or a copy refused: the host lacks what the device has."""

    def test_the_next_use_writes_the_missing_pages_and_windows_down(self):
        tiers = simulation(disk=None)
        tiers.run(text(1, 61))
        forget(tiers, Tier.HOST)
        assert not any(run.pages[Tier.HOST] for run in runs_of(tiers.cache))
        assert hit(tiers, text(1, 65)) == {Tier.DEVICE: 60}
        forget(tiers, Tier.DEVICE)
        assert hit(tiers, text(1, 66)) == {Tier.HOST: 64}
        check_invariants(tiers.cache)

    def test_a_host_that_had_no_room_is_filled_when_it_has(self):
        tiers = simulation(host=(12, 100), disk=None)
        tiers.run(text(1, 41))
        assert sum(len(run.pages[Tier.HOST]) for run in runs_of(tiers.cache)) == 10
        tiers.run(text(2, 41))  # takes the host's pages of the first
        tiers.run(text(1, 45))
        assert hit(tiers, text(1, 46))[Tier.DEVICE] == 44
        check_invariants(tiers.cache)


class TestHostCompleteDeviceDeficient:
    """The usual state after an eviction from the device."""

    def test_a_hit_loads_the_window_and_not_the_whole_segment(self):
        tiers = simulation()
        tiers.run(text(1, 121))
        forget(tiers, Tier.DEVICE)
        before = len(tiers.mover.moved)
        assert hit(tiers, text(1, 122)) == {Tier.HOST: 120}
        up = [t for t in tiers.mover.moved[before:] if t.target is Tier.DEVICE]
        assert sum(len(t.keys) for t in up if t.group == 0) == 30
        assert sum(len(t.keys) for t in up if t.group == 1) == 2  # W - 1 = 6 keys: two pages of 4

    def test_full_pages_without_windows_on_the_device_take_windows_from_below(self):
        tiers = simulation()
        tiers.run(text(1, 121))
        while (snapshot := tiers.cache.prefixes.windows.victim(Tier.DEVICE)) is not None:
            tiers.cache.prefixes.windows.drop(snapshot, Tier.DEVICE)
        before = len(tiers.mover.moved)
        assert hit(tiers, text(1, 122)) == {Tier.DEVICE: 120}
        assert [(t.source, t.group) for t in tiers.mover.moved[before:] if t.target is Tier.DEVICE] == [
            (Tier.HOST, 1),
            (Tier.HOST, 1),
        ]


def test_write_back_keeps_the_end_of_a_prefix_whose_beginning_is_still_above():
    """Ends are evicted first, but a tier below can only hold them after their beginning."""
    tiers = simulation(write_policy=WritePolicy.BACK, device=(34, 40))
    tiers.run(text(1, 40) + text(2, 41))
    tiers.run(text(1, 40) + text(3, 41))  # the tree branches after 10 pages: both ends do not fit beside each other
    assert sum(hit(tiers, text(1, 40) + text(2, 41)).values()) == 80
    check_invariants(tiers.cache)


class TestHotPrefixLostBelow:
    """What is hit above is never read below, and must not age out there all the same."""

    def test_hits_on_the_device_keep_a_prefix_in_the_store(self):
        size = 4 * sum(g.bytes_per_token(torch.float32) for g in GROUPS)
        tiers = simulation(disk=40 * size)
        tiers.run(text(1, 61))
        for i in range(2, 30):
            tiers.run(text(i, 41))
            assert hit(tiers, text(1, 61))[Tier.DEVICE] == 60
        for tier in (Tier.DEVICE, Tier.HOST):
            forget(tiers, tier)
        assert hit(tiers, text(1, 61)) == {Tier.DISK: 60}

    def test_a_shared_store_is_told_so_that_other_machines_hit(self):
        tiers = simulation()
        tiers.cache.prefixes._refresh_seconds = 0.0
        tiers.run(text(1, 61))
        tiers.mover.refreshed.clear()
        tiers.run(text(1, 61))
        refreshed = {group: {key for g, key in tiers.mover.refreshed if g == group} for group in (0, 1)}
        assert refreshed[0] == set(tiers.key(text(1, 60)).digests) and len(refreshed[1]) >= 2
        other = simulation()
        other.mover.records.update(tiers.mover.records)
        assert hit(other, text(1, 61)) == {Tier.DISK: 60}


def test_windows_in_a_slow_store_are_looked_for_only_so_long(monkeypatch):
    """Every place is a question that a step waits for, and without an answer in time there are 64 places."""
    tiers, now, questions = simulation(), [100.0], []
    tiers.run(text(1, 121))
    other = simulation()
    other.mover.records.update({(g, key): record for (g, key), record in tiers.mover.records.items() if g == 0})
    known = other.mover.known

    def slow(group, keys):
        questions.append(group)
        now[0] += 0.1
        return known(group, keys)

    monkeypatch.setattr(other.mover, "known", slow)
    monkeypatch.setattr("swa_attn.kvcache.prefix_cache.time", SimpleNamespace(monotonic=lambda: now[0]))
    assert not hit(other, text(1, 121))
    assert questions == [0, 1, 1, 1]  # how far the pages are known, and windows until a quarter of a second is over


class TestShortAndMediumPrefixes:
    """Windows at ends only: many questions behind one system prompt would all miss."""

    def test_every_question_hits_a_fixed_position_inside_the_system_prompt(self):
        tiers = simulation(policy=SnapshotPolicy(slack_pages=0, fixed=(8, 16, 32), branches=False))
        system = text(1, 45)
        hits = [tiers.run(system + text(i, 12)).hit_tokens for i in range(2, 12)]
        assert hits == [0] + [32] * 9

    def test_from_the_third_question_on_the_branch_itself_hits(self):
        tiers = simulation(policy=ENDS)
        system = text(1, 45)
        hits = [tiers.run(system + text(i, 12)).hit_tokens for i in range(2, 12)]
        assert hits == [0, 0] + [44] * 8

    def test_with_rebuild_the_second_question_hits_too(self):
        tiers = simulation(policy=ENDS, planner=MostReuse())
        system = text(1, 45)
        hits = [tiers.run(system + text(i, 12)).hit_tokens for i in range(2, 12)]
        assert hits == [0] + [44] * 9
        assert tiers.cache.stats().num_rebuilds == 1


def test_a_page_is_in_one_named_state_per_tier():
    tiers = simulation(device=(40, 40))
    keys = tiers.key(text(1, 12)).digests
    state = lambda tier: tiers.cache.prefixes.state(keys, tier)  # noqa: E731
    assert {state(t) for t in Tier} == {PageState.ABSENT}
    sequence = tiers.begin(text(1, 13))
    assert tiers.compute(sequence, 13)
    assert (state(Tier.DEVICE), state(Tier.HOST), state(Tier.DISK)) == (
        PageState.IN_USE, PageState.IN_USE, PageState.ARRIVING
    )  # fmt: skip
    tiers.mover.drain()
    assert (state(Tier.DEVICE), state(Tier.HOST), state(Tier.DISK)) == (
        PageState.IN_USE, PageState.RESIDENT, PageState.RESIDENT
    )  # fmt: skip
    tiers.end(sequence)
    assert state(Tier.DEVICE) is PageState.RESIDENT
    for tier in (Tier.DEVICE, Tier.HOST):
        forget(tiers, tier)
    loading = tiers.begin(text(1, 14))
    assert loading.is_loading
    assert (state(Tier.DEVICE), state(Tier.HOST), state(Tier.DISK)) == (
        PageState.ABSENT, PageState.ARRIVING, PageState.IN_USE
    )  # fmt: skip
    tiers.end(loading)
    tiers.mover.drain()
    assert state(Tier.HOST) is PageState.RESIDENT, "what was read for nobody is kept"
    check_invariants(tiers.cache)


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("policy", WritePolicy)
def test_a_host_with_hardly_a_page_left_never_stops_requests(free, policy):
    """Prefetch, eviction and an aborted request compete for 0, 1 or 2 pages; whatever is not possible is computed."""
    tiers = simulation(host=(16, 8), write_policy=policy)
    for i in range(4):
        tiers.run(text(i, 61))
    pool = tiers.cache.shelves[Tier.HOST].pools[0]
    hoard = pool.allocate(max(0, pool.num_free - free))
    pool.hold(len(hoard))
    running = [tiers.begin(text(i, 61)) for i in range(4) if tiers.cache.can_admit(tiers.key(text(i, 61)))]
    assert running
    tiers.end(running.pop())  # given up while it may still be loading
    for sequence in running:
        while not tiers.is_ready(sequence):
            tiers.now += 1.0
            tiers.cache.poll(timeout=None)
        while sequence.num_computed < 61:
            assert tiers.compute(sequence, min(16, 61 - sequence.num_computed))
        tiers.end(sequence)
    tiers.mover.drain()
    pool.let_go(len(hoard))
    pool.release(hoard)
    check_invariants(tiers.cache)


def test_a_stored_snapshot_can_be_resumed_from_every_tier():
    """The property that was broken elsewhere: what is written and what is looked for must agree."""
    for length in range(5, 40):
        for tier in Tier:
            tiers = simulation()
            tiers.run(text(1, length))
            for above in range(tier):
                forget(tiers, Tier(above))
            expected = (length - 1) // 4 * 4
            assert hit(tiers, text(1, length)) == ({tier: expected} if expected else {})


def test_a_plan_says_what_it_chose_and_from_what():
    tiers = simulation(planner=Planner(), policy=SnapshotPolicy(slack_pages=0, fixed=(8,)))
    tiers.run(text(1, 61))
    forget(tiers, Tier.DEVICE)
    plan = tiers.begin(text(1, 50)).plan
    actions = [option.actions for option in plan.options]
    assert frozenset({Action.RECOMPUTE}) in actions
    assert any(Action.REBUILD in a for a in actions) and any(Action.PROMOTE in a for a in actions)
    lines = plan.explain().splitlines()
    assert lines[0].startswith(f"> resume at {plan.resume}: ") and len(lines) == len(plan.options)
    assert all(line.startswith("  resume at ") for line in lines[1:])
    assert plan.seconds == min(o.seconds for o in plan.options)


class TestPlanner:
    def options(self, **changes):
        from swa_attn.kvcache import Situation

        situation = {"resume": 64_000, "num_tokens": 64_100, "device_tokens": 0, "host_tokens": 64_000,
                     "disk_tokens": 0, "host_bytes": 3_300_000_000, "disk_bytes": 0}  # fmt: skip
        return Situation(**{**situation, **changes}), Situation(0, 64_100, 0, 0, 0, 0, 0)

    def test_reading_wins_until_it_is_slower_than_computing(self):
        planner = Planner()
        assert planner.plan(self.options()).resume == 64_000
        for _ in range(200):
            planner.rates["host"].observe(1e6, 1.0)  # a megabyte a second
        assert planner.plan(self.options()).resume == 0

    def test_rates_follow_what_was_measured(self):
        planner = Planner(disk_bytes_per_second=1e9)
        for _ in range(100):
            planner.rates["disk"].observe(4e9, 2.0)
        assert planner.rates["disk"].per_second == pytest.approx(2e9, rel=0.01)

    def test_forbidden_actions_are_not_planned(self):
        on_disk = self.options(host_tokens=0, host_bytes=0, disk_tokens=64_000, disk_bytes=3_300_000_000)
        assert Action.LOAD in Planner().plan(on_disk).chosen.actions
        assert Planner(load=False).plan(on_disk).resume == 0
        staying = self.options(may_stay=True)
        assert any(Action.IN_PLACE in o.actions for o in Planner().plan(staying).options)
        assert not any(Action.IN_PLACE in o.actions for o in Planner(in_place=False).plan(staying).options)


def test_every_field_of_the_namespace_separates():
    """One change at a time, of everything that decides what a page holds or how it looks."""
    fingerprint = {
        "model": "m",
        "revision": "r1",
        "value_scale": 0.707,
        "rope": [(64, 10000.0)],
        "sinks": True,
        "scales": None,
    }
    group = {"name": "swa", "layers": (1, 2), "num_kv_heads": 8, "head_dim": 192, "v_head_dim": 128, "window": 128}

    def name(changed_model=(), changed_group=(), page_size=64, dtype=torch.bfloat16, salt=""):
        groups = [GroupSpec("full", (0,), 8, 192, 128), GroupSpec(**{**group, **dict(changed_group)})]
        return namespace_digest(repr({**fingerprint, **dict(changed_model)}), groups, page_size, dtype, salt)

    names = [name(), name(page_size=32), name(dtype=torch.float16), name(salt="tenant")]
    names += [name(changed_model={field: "another"}) for field in fingerprint]
    others = {"name": "windowed", "layers": (1, 3), "num_kv_heads": 4, "head_dim": 128, "v_head_dim": 64, "window": 129}
    names += [name(changed_group={field: value}) for field, value in others.items()]
    assert len(set(names)) == len(names) == 16


def test_stats_as_plain_values_and_as_prometheus_text():
    tiers = simulation(planner=MostReuse())
    for i in range(3):
        tiers.run(text(1, 45) + text(2 + i, 30))
    stats = tiers.cache.stats()
    plain = stats.as_dict()
    assert plain["moved_bytes"]["device -> host, full"] == stats.moved_bytes[Tier.DEVICE, Tier.HOST, "full"] > 0
    assert plain["hit_tokens_by_tier"] == {"device": 88, "host": 0, "disk": 0}
    text_form = stats.prometheus()
    values = {}
    for line in text_form.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values['swa_attn_cache_hit_tokens_by_tier_total{tier="device"}'] == 88
    assert values["swa_attn_cache_num_rebuilds_total"] == 1
    assert values['swa_attn_cache_snapshot_miss_gap_tokens_bucket{le="+Inf"}'] == stats.snapshot_misses == 1
    assert values['swa_attn_cache_device_pages_free{group="full"}'] == stats.pools["full"].free
    assert values['swa_attn_cache_moved_bytes_total{source="device",target="host",group="swa"}'] > 0
    typed = {line.split()[2] for line in text_form.splitlines() if line.startswith("# TYPE")}
    assert {
        name.split("{")[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in values
    } <= typed
