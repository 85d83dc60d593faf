"""What goes wrong in one request ends that request, and nobody finds what it has computed."""

import math
import random

import pytest
import torch
from chain_model import ChainModel, RebuildingModel
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_attn.kvcache import KVCache, LowerTiers, Planner, SnapshotPolicy
from swa_attn.kvcache.store import SlabOptions, SlabStore
from swa_attn.runner import Engine, FinishReason, SamplingParams

HYBRID = (None, 5, 5, None, 5)
PARAMS = SamplingParams(max_tokens=5)
TOXIC = 999


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(900) for _ in range(length)]


class ToxicModel(RebuildingModel):
    """The logits of a prompt that ends with TOXIC are not numbers."""

    value = math.nan

    def forward(self, tokens, positions, caches, metadata, logits_rows):
        logits = super().forward(tokens, positions, caches, metadata, logits_rows)
        logits[tokens[logits_rows] == TOXIC] = self.value
        return logits


class MostReuse(Planner):
    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


def make_engine(model=ToxicModel, *, full=60, swa=30, **options) -> Engine:
    built = model(HYBRID)
    return Engine(
        built,
        built.groups,
        page_size=4,
        num_pages={"full": full, "swa5": swa},
        **{"max_tokens_per_step": 16, "planner": MostReuse(deadline=60.0), **options},
    )


def cold(prompt: list[int], params: SamplingParams = PARAMS) -> list[int]:
    return make_engine(full=400, swa=400, enable_prefix_cache=False).generate([prompt], params)[0].tokens


def cached_pages(engine: Engine) -> dict[str, int]:
    return {name: pool.cached for name, pool in engine.stats().pools.items()}


def assert_idle(engine: Engine) -> None:
    assert not engine.has_work and not engine._requests and not engine._finished
    while engine.cache.num_pending:
        engine.cache.poll(timeout=10)
    assert all(pool.in_use == 0 for pool in engine.stats().pools.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bad_logits_end_their_request_and_no_other(value, temperature):
    good, toxic = text(1, 30), [*text(2, 37), TOXIC]
    params = SamplingParams(max_tokens=5, temperature=temperature, seed=3)
    engine = make_engine()
    engine.model.value = value
    first, second, third = engine.generate([good, toxic, good], params)
    assert first.tokens == third.tokens == cold(good, params) and first.error is None
    assert (second.tokens, second.finish_reason) == ([], FinishReason.ERROR)
    assert second.error == (
        f"request {second.request_id}: the logits after 38 tokens hold NaN or no finite largest value"
    )
    assert second.usage.prompt_tokens == 38 and second.time_to_first_token is None and second.total_time > 0
    assert_idle(engine)


def test_pages_of_earlier_chunks_of_the_failed_prompt_are_gone_too_and_those_of_others_stay():
    engine = make_engine()
    shared = text(0, 20)
    engine.generate([[*shared, 1]], PARAMS)
    before = cached_pages(engine)
    toxic = [*shared, *text(2, 40), TOXIC]  # in chunks of 16
    (failed,) = engine.generate([toxic], PARAMS)
    assert failed.finish_reason is FinishReason.ERROR and failed.usage.cached_tokens == 20
    assert cached_pages(engine) == before
    assert engine.cache.match(engine.cache.key([*toxic, 1])).num_pages == 5
    (again,) = engine.generate([[*toxic, 1]], PARAMS)
    assert again.usage.cached_tokens == 20 and again.tokens == cold([*toxic, 1])
    assert_idle(engine)


def test_what_the_failed_request_generated_before_is_forgotten():
    engine = make_engine()
    prompt = text(0, 20)
    request_id = engine.add_request(prompt, SamplingParams(max_tokens=30))
    for _ in range(12):
        engine.step()
    known = engine._requests[request_id]
    tokens = [*prompt, *known.output]
    assert engine.cache.match(engine.cache.key(tokens)).num_pages >= 6
    engine.model.forward = lambda *args: torch.full((1, 61), math.nan)
    assert engine.step() == []
    completion = engine.take(request_id)
    assert completion.error.startswith(f"request {request_id}: the logits after {len(tokens)} tokens")
    assert completion.tokens == known.output
    assert engine.cache.match(engine.cache.key(tokens)).num_pages == 0
    assert set(cached_pages(engine).values()) == {0}


def test_a_preempted_request_s_first_life_is_forgotten_too():
    engine = make_engine(full=24, swa=60)
    old = engine.add_request(text(1, 20), SamplingParams(max_tokens=40))
    engine.step()
    new = engine.add_request(text(2, 40), SamplingParams(max_tokens=40))
    request = engine._requests[new]
    while not request.num_preemptions:
        engine.step()
    tokens = request.tokens(0, request.num_tokens)
    while request.pages is None:
        engine.step()
    assert request.pages.hit_tokens > 0 == request.first_own
    engine._verdict = lambda own, token: "no" if own is request else Engine._verdict(engine, own, token)
    while engine.has_work:
        engine.step()
    assert engine.take(new).finish_reason is FinishReason.ERROR
    assert engine.cache.match(engine.cache.key(tokens)).num_pages == 0
    assert engine.take(old).tokens == cold(text(1, 20), SamplingParams(max_tokens=40))


def test_windows_that_cannot_be_rebuilt_end_the_request_that_needs_them():
    engine = make_engine(full=200, swa=24, policy=SnapshotPolicy(fixed=()))
    shared = text(0, 200)
    engine.generate([[*shared, *text(1, 30)]], PARAMS)
    rebuild, engine.model.rebuild_windows = engine.model.rebuild_windows, lambda *args: 1 / 0
    other = engine.add_request(text(9, 20), PARAMS)
    (failed,) = engine.generate([[*shared, *text(2, 30)]], PARAMS)
    assert failed.error == "request 2: its windows could not be rebuilt: ZeroDivisionError: division by zero"
    assert engine.cache.match(engine.cache.key([*shared, 1])).num_pages == 47  # where the rebuild began
    while engine.has_work:
        engine.step()
    assert engine.take(other).tokens == cold(text(9, 20))
    engine.model.rebuild_windows = rebuild
    for seed in (3, 4):
        prompt = [*shared, *text(seed, 30)]
        assert engine.generate([prompt], PARAMS)[0].tokens == cold(prompt)
    assert_idle(engine)


def test_a_forward_that_raises_is_nobody_s_fault_and_changes_nothing():
    engine = make_engine()
    ids = [engine.add_request(text(i, 30), PARAMS) for i in range(3)]
    engine.step()
    forward = engine.model.forward
    for raised in (ZeroDivisionError, MemoryError, IndexError):
        engine.model.forward = lambda *args, raised=raised: (_ for _ in ()).throw(raised)
        with pytest.raises(raised):
            engine.step()
    engine.model.forward = lambda *args: torch.zeros(7, 61)  # logits of other rows than were asked for
    with pytest.raises(ValueError, match="one of params and of steps per row"):
        engine.step()
    engine.model.forward = forward
    while engine.has_work:
        engine.step()
    assert [engine.take(i).tokens for i in ids] == [cold(text(i, 30)) for i in range(3)]
    assert_idle(engine)


def test_a_callback_that_raises_ends_its_own_call_and_leaves_others_alone():
    engine = make_engine()
    other = engine.add_request(text(1, 30), SamplingParams(max_tokens=9))
    received = engine.stream(text(2, 30), SamplingParams(max_tokens=9))
    first = next(received)

    def fail(index: int, token: int) -> None:
        raise RuntimeError("reader gone")

    with pytest.raises(RuntimeError, match="reader gone"):
        engine.generate([text(0, 20), text(3, 20)], PARAMS, stream=fail)
    assert len(engine._requests) == 2
    assert [first, *received] == cold(text(2, 30), SamplingParams(max_tokens=9))
    while engine.has_work:
        engine.step()
    assert engine.take(other).tokens == cold(text(1, 30), SamplingParams(max_tokens=9))
    assert_idle(engine)


def test_the_callback_may_use_the_engine():
    engine = make_engine()
    added: list[int] = []

    def also(index: int, token: int) -> None:
        if not added:
            added.append(engine.add_request(text(5, 20), PARAMS))
            engine.cancel(engine.add_request(text(6, 20), PARAMS))
            assert engine.generate([text(7, 20)], PARAMS)[0].tokens == cold(text(7, 20))

    assert engine.generate([text(1, 20)], PARAMS, stream=also)[0].tokens == cold(text(1, 20))
    while engine.has_work:
        engine.step()
    assert engine.take(added[0]).tokens == cold(text(5, 20))
    assert_idle(engine)


def test_the_store_forgets_as_well(tmp_path):
    layout, sizes = KVCache.store_layout(ChainModel(HYBRID).groups, 4, torch.float32)
    options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    toxic = [*text(2, 80), TOXIC]
    with SlabStore(tmp_path, options, namespace=b"chain", layout=layout) as store:
        for settle in (False, True):  # the store takes pages before the failure, and while it happens
            lower = LowerTiers({"full": 60, "swa5": 24}, store=store, disk_bytes=4 << 20)
            with make_engine(lower=lower, fingerprint="chain") as engine:
                request_id = engine.add_request(toxic, PARAMS)
                while engine.has_work:
                    engine.step()
                    while settle and engine.cache.num_pending:
                        engine.cache.poll(timeout=10)
                assert engine.take(request_id).finish_reason is FinishReason.ERROR
                assert engine.stats().moved_bytes or not settle
                while engine.cache.num_pending:
                    engine.cache.poll(timeout=10)
                key = engine.cache.key([*toxic, 1])
            assert not any(store.contains(bytes((0,)) + name) for name in key.digests)
            with make_engine(lower=lower, fingerprint="chain") as engine:
                assert engine.generate([[*toxic, 1]], PARAMS)[0].usage.cached_tokens == 0
                engine.clear_cache()


@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 50), st.integers(0, 3), st.booleans()), min_size=1, max_size=12
    ),
    full=st.sampled_from([20, 60]),
    batch=st.sampled_from([1, 4]),
    host=st.booleans(),
)
def test_whoever_fails_beside_them_the_others_get_the_cold_answers(requests, full, batch, host):
    prompts = [text(start, length) + ([TOXIC] if bad else [end]) for start, length, end, bad in requests]
    lower = LowerTiers({"full": 40, "swa5": 20}) if host else None
    with make_engine(full=full, swa=12, lower=lower) as engine:
        for i in range(0, len(prompts), batch):
            completions = engine.generate(prompts[i : i + batch], PARAMS)
            for prompt, completion in zip(prompts[i : i + batch], completions, strict=True):
                if prompt[-1] == TOXIC:
                    assert completion.error and not completion.tokens
                else:
                    assert completion.tokens == cold(prompt)
        assert_idle(engine)
