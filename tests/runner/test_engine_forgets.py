"""What an engine can be made to forget: its cache, and what was computed with other weights."""

import random

import pytest
import torch
from chain_model import PRIME, ChainModel

from swa_attn.kvcache import KVCache, LowerTiers, Planner, Tier
from swa_attn.kvcache.store import SlabOptions, SlabStore
from swa_attn.runner import Engine, SamplingParams

HYBRID = (None, 5, 5, None, 5)
PARAMS = SamplingParams(max_tokens=5)


def text(seed: int, length: int = 41) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(1000) for _ in range(length)]


class WeightedModel(ChainModel):
    """What it stores and says depends on `weight`."""

    weight = 7919

    def forward(self, tokens, positions, caches, metadata, logits_rows):
        return super().forward(tokens * self.weight % PRIME, positions, caches, metadata, logits_rows)


def with_weight(weight: int) -> WeightedModel:
    model = WeightedModel(HYBRID)
    model.weight = weight
    return model


class MostReuse(Planner):
    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


@pytest.fixture
def store(tmp_path):
    layout, sizes = KVCache.store_layout(ChainModel(HYBRID).groups, 4, torch.float32)
    options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    with SlabStore(tmp_path, options, namespace=b"chain", layout=layout) as opened:
        yield opened


def make_engine(store=None, weight: int = 7919, **options) -> Engine:
    model = with_weight(weight)
    disk = {} if store is None else {"store": store, "disk_bytes": 4 << 20}
    lower = LowerTiers({"full": 60, "swa5": 24}, **disk)
    return Engine(
        model,
        model.groups,
        page_size=4,
        num_pages={"full": 40, "swa5": 24},
        lower=lower,
        **{
            "max_tokens_per_step": 32,
            "planner": MostReuse(rebuild=False, deadline=60.0),
            "fingerprint": "weights",
            **options,
        },
    )


def settle(engine: Engine) -> None:
    while engine.cache.num_pending:
        engine.cache.poll(timeout=10)


def run(engine: Engine, prompt: list[int]) -> tuple[list[int], int]:
    """The answer, and how much of the prompt was in some tier."""
    (completion,) = engine.generate([prompt], PARAMS)
    settle(engine)
    return completion.tokens, completion.usage.cached_tokens


def cold(prompt: list[int], weight: int = 7919) -> list[int]:
    model = with_weight(weight)
    engine = Engine(model, model.groups, page_size=4, num_pages={"full": 99, "swa5": 99}, enable_prefix_cache=False)
    return engine.generate([prompt], PARAMS)[0].tokens


@pytest.mark.parametrize("disk", [False, True])
def test_a_cleared_cache_finds_nothing_in_any_tier(store, disk):
    prompts = [text(i, 81) for i in range(6)]  # 21 pages each: they are on the device, the host and the disk
    with make_engine(store if disk else None) as engine:
        for prompt in prompts:
            run(engine, prompt)
        before = engine.stats()
        assert all(before.resident_bytes[tier] for tier in before.resident_bytes)
        engine.clear_cache()
        after = engine.stats()
        assert not any(after.resident_bytes.values()) and after.num_snapshots == 0
        assert after.num_lookups == before.num_lookups and after.hit_tokens == before.hit_tokens
        assert not disk or store.stats().records == 0
        for prompt in prompts:
            assert run(engine, prompt) == (cold(prompt), 0)
            assert run(engine, prompt) == (cold(prompt), 80)


def test_records_that_a_cleared_cache_did_not_know_of_are_not_found_either(store):
    with make_engine(store) as first:
        for seed in (0, 1):
            run(first, text(seed))
    with make_engine(store) as second:
        second.clear_cache()
        assert store.stats().records > 0, "written by another engine, which this one has not asked for"
        assert run(second, text(0)) == (cold(text(0)), 0)
        second.set_fingerprint("other")
        second.set_fingerprint("weights")
        assert run(second, text(1)) == (cold(text(1)), 0), "names that were cleared stay so when they come back"
    with make_engine(store) as third:
        assert run(third, text(0))[1] == 40, "others were not told to forget"


def test_requests_that_run_or_wait_while_the_cache_is_cleared_get_their_answers():
    with make_engine(max_num_seqs=2) as engine:
        run(engine, text(0))
        ids = [engine.add_request(text(i), PARAMS) for i in range(4)]
        for steps in range(9):
            for _ in range(steps):
                engine.step()
            engine.clear_cache()
            assert all(pool.in_use == 0 for pool in engine.stats().pools.values())
        while engine.has_work:
            engine.step()
        completions = [engine.take(i) for i in ids]
        assert [c.tokens for c in completions] == [cold(text(i)) for i in range(4)]
        assert max(c.num_preemptions for c in completions) > 0
        settle(engine)
        assert all(pool.in_use == 0 for pool in engine.stats().pools.values())


def test_kv_of_old_weights_is_never_served_to_new_ones(store):
    prompt = text(0)
    with make_engine(store, fingerprint="r1") as engine:
        assert run(engine, prompt) == (cold(prompt), 0) and run(engine, prompt)[1] == 40
        engine.update_weights(with_weight(31), fingerprint="r2")
        assert run(engine, prompt) == (cold(prompt, 31), 0) and run(engine, prompt) == (cold(prompt, 31), 40)
        engine.model.weight = 77  # in place
        engine.update_weights(fingerprint="r3")
        assert run(engine, prompt) == (cold(prompt, 77), 0)
        engine.update_weights(with_weight(7919), fingerprint="r1")
        (completion,) = engine.generate([prompt], PARAMS)
        assert completion.tokens == cold(prompt) and completion.usage.cached_by_tier == {Tier.DISK: 40}
    with make_engine(store, 31, fingerprint="r2") as engine:
        assert run(engine, prompt) == (cold(prompt, 31), 40)


def test_without_a_store_new_weights_need_no_name():
    with make_engine() as engine:
        run(engine, text(0))
        engine.model.weight = 31
        engine.update_weights()
        assert run(engine, text(0)) == (cold(text(0), 31), 0) and run(engine, text(0)) == (cold(text(0), 31), 40)


def test_what_an_update_must_not_be_is_refused(store):
    with make_engine(store, fingerprint="r1") as engine:
        expected = [(ValueError, "cannot be named by its weights: it has no config", {}),
                    (ValueError, "fingerprint must be a new one, got the old one, 'r1'", {"fingerprint": "r1"}),
                    (TypeError, "fingerprint must be a str, got int", {"fingerprint": 2})]  # fmt: skip
        for kind, message, arguments in expected:
            with pytest.raises(kind, match=message):
                engine.update_weights(**arguments)
        request_id = engine.add_request(text(0), PARAMS)
        engine.step()
        with pytest.raises(RuntimeError, match="1 requests are unfinished; end them first"):
            engine.set_fingerprint("r2")
        while engine.has_work:
            engine.step()
        assert engine.take(request_id).tokens == cold(text(0))
        engine.set_fingerprint("r2")
    with pytest.raises(RuntimeError, match=r"Engine\.clear_cache: the engine is closed"):
        engine.clear_cache()


def test_a_planner_that_rebuilds_needs_a_model_that_can():
    with (
        make_engine(planner=Planner(rebuild=True)) as engine,
        pytest.raises(TypeError, match="model must have rebuild_windows"),
    ):
        engine.update_weights(with_weight(3), fingerprint="r2")


class Cut(Exception):
    """Comes from nowhere."""


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("place", ["before", "after"])
def test_new_weights_that_are_cut_short_are_there_with_the_next_call(named, place, monkeypatch):
    """Never one model's KV under the other's name: whatever was done, the rest is done before anything is computed."""
    prompt, method = text(0), "set_fingerprint" if named else "clear"
    with make_engine(fingerprint="r1") as engine:
        run(engine, prompt)
        whole = getattr(engine.cache, method)

        def cut(*arguments) -> None:
            if place == "after":
                whole(*arguments)
            raise Cut

        monkeypatch.setattr(engine.cache, method, cut)
        for _ in range(2):  # nor when the mending is cut short
            with pytest.raises(Cut):
                engine.update_weights(with_weight(31), fingerprint="r2" if named else None)
        monkeypatch.undo()
        assert run(engine, prompt) == (cold(prompt, 31), 0) and run(engine, prompt) == (cold(prompt, 31), 40)
        assert engine.model.weight == 31 and engine.cache.fingerprint == ("r2" if named else "r1")
        engine.update_weights(with_weight(7919), fingerprint="r3")
        assert run(engine, prompt) == (cold(prompt), 0)


def test_new_weights_wait_for_a_transfer_that_does_not_end(monkeypatch):
    with make_engine(fingerprint="r1") as engine:
        run(engine, text(0))

        def stuck() -> None:
            raise RuntimeError("1 transfers with the store did not end within 30.0 seconds")

        engine.model.weight = 31  # in place
        monkeypatch.setattr(engine.cache.mover, "reset", stuck)
        for call in (lambda: engine.update_weights(fingerprint="r2"), lambda: engine.generate([text(0)], PARAMS)):
            with pytest.raises(RuntimeError, match="did not end within"):
                call()
        monkeypatch.undo()
        assert run(engine, text(0)) == (cold(text(0), 31), 0) and engine.cache.fingerprint == "r2"


def test_a_fingerprint_that_is_none_changes_nothing(store):
    with make_engine(store, fingerprint="r1") as engine:
        run(engine, text(0))
        for wrong, kind in ((None, TypeError), (7, TypeError), ("", ValueError)):
            with pytest.raises(kind, match=r"^Engine\.set_fingerprint: fingerprint must "):
                engine.set_fingerprint(wrong)
        with pytest.raises(ValueError, match=r"^Engine\.update_weights: fingerprint must name the model"):
            engine.update_weights(fingerprint="")
        assert engine.cache.fingerprint == "r1" and run(engine, text(0))[1] == 40
