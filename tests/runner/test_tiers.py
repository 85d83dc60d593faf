"""Hits from every tier give the answers of a cold run: an engine over device, host and a store on disk."""

import random
from concurrent.futures import Future

import pytest
import torch
from chain_model import ChainModel, RebuildingModel
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_streams import LazyStreams

from swa_attn.kvcache import Action, KVCache, LowerTiers, Planner, SnapshotPolicy, Tier, WritePolicy, cache
from swa_attn.kvcache.store import SlabOptions, SlabStore
from swa_attn.kvcache.store.base import resolved
from swa_attn.runner.engine import Engine
from swa_attn.runner.sampler import SamplingParams

pytestmark = pytest.mark.usefixtures("poisoned_pools")

HYBRID = (None, 5, 5, None, 5)
PAGE_SIZE = 4
PARAMS = SamplingParams(max_tokens=5)


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(1000) for _ in range(length)]


def cold(prompts: list[list[int]], model=ChainModel, params: SamplingParams = PARAMS) -> list[list[int]]:
    """Each prompt alone in an engine of its own, without a cache."""
    answers = []
    for prompt in prompts:
        engine = Engine(model(HYBRID), model(HYBRID).groups, page_size=PAGE_SIZE, enable_prefix_cache=False,
                        num_pages={"full": 400, "swa5": 400})  # fmt: skip
        answers.append(engine.generate([prompt], params)[0].tokens)
    return answers


@pytest.fixture
def store(tmp_path):
    layout, sizes = KVCache.store_layout(ChainModel(HYBRID).groups, PAGE_SIZE, torch.float32)
    options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    with SlabStore(tmp_path, options, namespace=b"chain", layout=layout) as opened:
        yield opened


class MostReuse(Planner):
    """On a model this small computing is often faster than reading; what is tested here is the reading."""

    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


def make_engine(store, *, device=40, host=60, swa=24, host_swa=24, model=RebuildingModel, **options) -> Engine:
    write_policy = options.pop("write_policy", WritePolicy.THROUGH)
    disk = {} if store is None else {"store": store, "disk_bytes": 4 << 20}
    return Engine(
        built := model(HYBRID),
        built.groups,
        page_size=PAGE_SIZE,
        num_pages={"full": device, "swa5": swa},
        lower=LowerTiers({"full": host, "swa5": host_swa}, write_policy=write_policy, **disk),
        **{"max_tokens_per_step": 64, "planner": MostReuse(deadline=60.0), "fingerprint": "chain", **options},
    )


def settle(engine: Engine) -> None:
    """Until nothing is under way."""
    while engine.cache.num_pending:
        engine.cache.poll(timeout=10)


def test_a_prefix_comes_back_from_the_host_and_from_disk(store):
    prompts = [text(i, 81) for i in range(12)]  # 21 pages each: one fits the device, four the host
    expected = cold(prompts)
    with make_engine(store, host=100) as engine:
        for _ in range(2):
            for prompt, tokens in zip(prompts, expected, strict=True):
                assert engine.generate([prompt], PARAMS)[0].tokens == tokens
                settle(engine)
        by_tier = [engine.generate([prompts[i]], PARAMS)[0].usage.cached_by_tier for i in (11, 9, 2)]
        assert [list(tiers) for tiers in by_tier] == [[Tier.DEVICE], [Tier.HOST], [Tier.DISK]]
        assert all(sum(tiers.values()) == 80 for tiers in by_tier)
        stats = engine.stats()
        assert stats.hit_tokens_by_tier[Tier.DISK] >= 12 * 80 and stats.lost_pages == 0
        assert stats.moved_bytes[Tier.DISK, Tier.HOST, "full"] > 0
        assert stats.moved_bytes[Tier.HOST, Tier.DEVICE, "swa5"] > 0


def test_only_windows_of_windowed_layers_are_moved(store):
    prompts = [text(i, 401) for i in range(3)] + [text(50 + i, 9) for i in range(12)]
    with make_engine(store, device=120, host=500, host_swa=60) as engine:
        for prompt in prompts:
            engine.generate([prompt], PARAMS)
            settle(engine)
        assert engine.generate([prompts[0]], PARAMS)[0].usage.cached_by_tier == {Tier.HOST: 400}
        moved, pools = engine.stats().moved_bytes, engine.stats().pools
        assert moved[Tier.HOST, Tier.DEVICE, "full"] == 100 * pools["full"].bytes_per_page
        assert moved[Tier.HOST, Tier.DEVICE, "swa5"] == pools["swa5"].bytes_per_page  # W - 1 = 4 keys: one page


@pytest.mark.parametrize("policy", WritePolicy)
def test_every_write_policy_gives_the_cold_answers(store, policy):
    prompts = [text(i // 3, 61) + text(100 + i, 10) for i in range(21)] * 2
    expected = cold(prompts)
    with make_engine(store, device=48, write_policy=policy) as engine:
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert engine.generate([prompt], PARAMS)[0].tokens == tokens
            settle(engine)
        assert engine.stats().hit_tokens > 0
        assert engine.stats().moved_bytes[Tier.DEVICE, Tier.HOST, "full"] > 0


def test_a_rebuild_gives_the_cold_answer_and_its_windows_serve_the_next(store):
    shared = text(0, 200)
    prompts = [shared + text(i, 30) for i in range(1, 5)]
    expected = cold(prompts)
    with make_engine(store, device=100, host=200, policy=SnapshotPolicy(fixed=())) as engine:
        hits = []
        for prompt, tokens in zip(prompts, expected, strict=True):
            completion = engine.generate([prompt], PARAMS)[0]
            assert completion.tokens == tokens
            hits.append(completion.usage.cached_tokens)
        assert hits == [0, 200, 200, 200]
        assert engine.stats().num_rebuilds == engine.model.num_rebuilds == 1
        assert 0 < engine.stats().rebuild_token_equivalents < 12


class StayInPlace(Planner):
    def choose(self, options):
        staying = [o for o in options if Action.IN_PLACE in o.actions]
        return min(staying or options, key=lambda o: (-o.resume, o.seconds))


def test_scratch_of_a_rebuild_is_no_slack(store):
    """What a rebuild computes before the window is not what a cold run has there, and must not be kept."""
    prompts = [text(0, length) + text(50, 3) for length in (38, 28, 24)]
    expected = cold(prompts)
    with make_engine(store, device=18, host=4, max_tokens_per_step=5) as engine:
        for prompt, tokens in [*zip(prompts, expected, strict=True)] * 2:
            assert engine.generate([prompt], PARAMS)[0].tokens == tokens
        assert engine.stats().num_rebuilds > 0


def test_host_pages_are_read_in_place(store):
    class Watched(ChainModel):
        largest_ids: list[int] = []  # noqa: RUF012

        def forward(self, tokens, positions, caches, metadata, logits_rows):
            self.largest_ids.append(int(metadata["full"].block_table.max()))
            return super().forward(tokens, positions, caches, metadata, logits_rows)

    prompts = [text(i, 81) for i in range(8)]
    expected = cold(prompts)
    with make_engine(
        store, device=40, host=200, planner=StayInPlace(rebuild=False, deadline=60.0), model=Watched
    ) as engine:
        for prompt in prompts:
            engine.generate([prompt], PARAMS)
            settle(engine)
        engine.model.largest_ids.clear()
        completion = engine.generate([prompts[0]], PARAMS)[0]
        assert completion.tokens == expected[0] and completion.usage.cached_by_tier == {Tier.HOST: 80}
        assert engine.model.largest_ids[0] >= 40, "the first step reads host pages"
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert engine.generate([prompt], PARAMS)[0].tokens == tokens
        settle(engine)
        assert all(pool.in_use == 0 for pool in engine.stats().pools.values())


def test_a_slow_store_is_not_waited_for_beyond_the_deadline(store, monkeypatch):
    prompts = [text(i, 81) for i in range(12)]
    expected = cold(prompts)
    with make_engine(store, planner=MostReuse(deadline=0.05)) as engine:
        for prompt in prompts:
            engine.generate([prompt], PARAMS)
            settle(engine)
        never: list[Future] = []

        def get(*_):
            never.append(Future())
            return never[-1]

        monkeypatch.setattr(store, "get", get)
        completion = engine.generate([prompts[0]], PARAMS)[0]
        assert completion.tokens == expected[0] and completion.usage.cached_tokens == 0
        assert engine.stats().late_loads == 1 and never
        for future in never:
            future.set_result(False)
        settle(engine)
        assert engine.stats().lost_pages > 0
        monkeypatch.undo()
        assert [engine.generate([p], PARAMS)[0].tokens for p in prompts] == expected


def test_what_a_store_lost_is_computed_again(store, monkeypatch):
    prompts = [text(i, 81) for i in range(12)]
    expected = cold(prompts)
    with make_engine(store) as engine:
        for prompt in prompts:
            engine.generate([prompt], PARAMS)
            settle(engine)
        monkeypatch.setattr(store, "get", lambda *_: resolved(False))
        assert [engine.generate([p], PARAMS)[0].tokens for p in prompts] == expected
        assert engine.stats().lost_pages > 0


def test_another_process_life_finds_what_the_store_kept(store):
    prompts = [text(i, 81) for i in range(4)]
    expected = cold(prompts)
    with make_engine(store) as engine:
        for prompt in prompts:
            engine.generate([prompt], PARAMS)
            settle(engine)
    with make_engine(store, planner=MostReuse(rebuild=False, deadline=60.0)) as engine:
        completions = [engine.generate([prompt], PARAMS)[0] for prompt in prompts]
        assert [c.tokens for c in completions] == expected
        tiers = [c.usage.cached_by_tier for c in completions]
        # A store may refuse or miss a record when its disk is slow; what it has is found whole.
        assert all(found in ({}, {Tier.DISK: 80}) for found in tiers) and tiers.count({Tier.DISK: 80}) >= 2


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(0, 5)), min_size=1, max_size=14),
    device=st.sampled_from([18, 24, 40]),
    host=st.sampled_from([4, 16, 60]),
    chunk=st.sampled_from([5, 16, 64]),
    policy=st.sampled_from(list(WritePolicy)),
    batch=st.sampled_from([1, 3]),
)
def test_any_traffic_through_any_tiers_gives_the_cold_answers(
    tmp_path_factory, requests, device, host, chunk, policy, batch
):
    prompts = [text(start, length) + text(50 + end, 3) for start, length, end in requests]
    expected = cold(prompts)
    layout, sizes = KVCache.store_layout(ChainModel(HYBRID).groups, PAGE_SIZE, torch.float32)
    options = SlabOptions(1 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    slab = SlabStore(tmp_path_factory.mktemp("slab"), options, namespace=b"chain", layout=layout)
    with slab, make_engine(slab, device=device, host=host, max_tokens_per_step=chunk, write_policy=policy) as engine:
        for _ in range(2):
            for i in range(0, len(prompts), batch):
                completions = engine.generate(prompts[i : i + batch], PARAMS)
                assert [c.tokens for c in completions] == expected[i : i + batch]
        settle(engine)
        assert all(pool.in_use == 0 for pool in engine.stats().pools.values())


@pytest.mark.parametrize("policy", WritePolicy)
def test_copies_on_streams_as_late_as_their_events_allow_change_nothing(store, monkeypatch, policy):
    """The mover of a GPU, with streams that do nothing until somebody waits: every wait that it leaves out would show."""
    lazy = LazyStreams(monkeypatch)
    monkeypatch.setattr(cache, "ThreadMover", lazy.mover)
    prompts = [text(i // 3, 61) + text(100 + i, 10) for i in range(18)] * 2
    expected = cold(prompts)
    with make_engine(store, device=44, host=70, write_policy=policy) as engine:
        for i in range(0, len(prompts), 2):
            completions = engine.generate(prompts[i : i + 2], PARAMS)
            assert [c.tokens for c in completions] == expected[i : i + 2]
        settle(engine)
        tiers = engine.stats().hit_tokens_by_tier
        assert tiers[Tier.HOST] + tiers[Tier.DISK] > 0 and lazy.copies > 100
        assert all(pool.in_use == 0 for pool in engine.stats().pools.values())
