"""Whatever the cache, the scheduler and the pools do, a request's tokens are those of running it alone and cold."""

import pytest
import torch
from chain_model import VOCAB, ChainModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swa_attn.kvcache import SnapshotPolicy
from swa_attn.runner.engine import Engine
from swa_attn.runner.request import FinishReason
from swa_attn.runner.sampler import SamplingParams
from swa_attn.runner.scheduler import RequestTooLarge
from swa_attn.runner.usage import Usage

pytestmark = pytest.mark.usefixtures("poisoned_pools")

HYBRID = (None, 9, 9, None, 9)
MODELS = {
    "hybrid": HYBRID,
    "window-1": (None, 1),
    "window-2": (2, None, 2),
    "window-of-a-page-and-one": (None, 5),
    "full-only": (None, None),
    "windowed-only": (9, 9),
    "two-windows": (None, 5, 17),
}


def make_engine(windows=HYBRID, page_size=4, num_pages=300, **options) -> Engine:
    model = ChainModel(windows)
    pages = num_pages if isinstance(num_pages, dict) else {g.name: num_pages for g in model.groups}
    return Engine(model, model.groups, page_size=page_size, num_pages=pages, **options)


def text(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


def cold(prompts, params, windows=HYBRID) -> list[list[int]]:
    """Each prompt alone, in one chunk, without a prefix cache."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    engine = make_engine(windows, enable_prefix_cache=False, max_tokens_per_step=10**6)
    return [engine.generate([prompt], own)[0].tokens for prompt, own in zip(prompts, each, strict=True)]


def outputs(completions) -> list[list[int]]:
    return [c.tokens for c in completions]


def hits(completions) -> list[int]:
    return [c.usage.cached_tokens for c in completions]


def assert_idle(engine: Engine) -> None:
    """All requests have ended, and no page, pin or request is left behind."""
    assert not engine.has_work and not engine._requests and not engine._finished
    assert all(pool.in_use == 0 for pool in engine.stats().pools.values())
    runs = [engine.cache.prefixes.tree.root]
    for run in runs:
        assert run.pins == [0, 0, 0]
        runs.extend(run.children.values())


@pytest.mark.parametrize("windows", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_conversation_gives_the_cold_answers(windows, page_size):
    engine = make_engine(windows, page_size)
    params = SamplingParams(max_tokens=13)
    history, computed = text(0, 37), 0
    for turn in range(4):
        (completion,) = engine.generate([history], params)
        assert completion.tokens == cold([history], params, windows)[0]
        assert completion.usage.cached_tokens == computed // page_size * page_size
        history = history + completion.tokens
        computed = len(history) - 1  # the last generated token has no K and V yet
        history += text(turn + 1, 11)
    assert_idle(engine)


@pytest.mark.parametrize("windows", MODELS.values(), ids=MODELS)
def test_a_fan_out_gives_the_cold_answers_and_hits_from_the_third_on(windows):
    engine = make_engine(windows)
    params = SamplingParams(max_tokens=5)
    prompts = [[*text(0, 50), i, *text(i, 30)] for i in range(5)]
    completions = [engine.generate([prompt], params)[0] for prompt in prompts]
    assert outputs(completions) == cold(prompts, params, windows)
    second = 48 if windows in ((None, None), (None, 1)) else 0
    assert hits(completions) == [0, second, 48, 48, 48]
    assert_idle(engine)


@pytest.mark.parametrize("windows", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("length", [1, 15, 16, 17])
def test_an_exact_repeat_gives_the_cold_answer(windows, length):
    engine = make_engine(windows)
    params = SamplingParams(max_tokens=9)
    runs = [engine.generate([text(0, length)], params)[0] for _ in range(3)]
    assert outputs(runs) == cold([text(0, length)], params, windows) * 3
    assert hits(runs) == [0, *[(length - 1) // 4 * 4] * 2]


def test_the_same_prompt_at_every_hit_length_gives_the_same_answer():
    prompt, params = text(0, 41), SamplingParams(max_tokens=6)
    expected = cold([prompt], params)[0]
    for length in range(1, 41):
        engine = make_engine()
        engine.generate([prompt[:length]], SamplingParams(max_tokens=1))
        (completion,) = engine.generate([prompt], params)
        assert (completion.tokens, completion.usage.cached_tokens) == (expected, length // 4 * 4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 64, 1000])
@pytest.mark.parametrize("max_num_seqs", [1, 3, 16])
def test_neither_chunks_nor_batches_change_the_answers(chunk, max_num_seqs):
    prompts = [text(i, 5 + 9 * i) for i in range(6)] + [text(5, 30), text(5, 50)]
    params = [SamplingParams(max_tokens=1 + 4 * (i % 4)) for i in range(len(prompts))]
    engine = make_engine(max_tokens_per_step=chunk, max_num_seqs=max_num_seqs)
    assert outputs(engine.generate(prompts, params)) == cold(prompts, params)
    assert_idle(engine)


@pytest.mark.parametrize("num_pages", [{"full": 30, "swa9": 200}, {"full": 200, "swa9": 5}, {"full": 24, "swa9": 4}])
@pytest.mark.parametrize("enable_prefix_cache", [True, False])
def test_too_small_pools_queue_or_preempt_and_change_nothing(num_pages, enable_prefix_cache):
    prompts = [text(i, 20 + i) for i in range(8)]
    params = SamplingParams(max_tokens=60)
    engine = make_engine(num_pages=num_pages, enable_prefix_cache=enable_prefix_cache, max_tokens_per_step=32)
    completions = engine.generate(prompts, params)
    assert outputs(completions) == cold(prompts, params)
    if num_pages["full"] == 30:
        assert sum(c.num_preemptions for c in completions) > 0
    assert_idle(engine)


def test_four_long_conversations_share_a_tiny_windowed_pool():
    engine = make_engine(num_pages={"full": 2000, "swa9": 9}, max_tokens_per_step=24)
    histories = [text(u, 40) for u in range(4)]
    params = SamplingParams(max_tokens=10)
    for turn in range(5):
        completions = engine.generate(histories, params)
        assert outputs(completions) == cold(histories, params)
        histories = [h + c.tokens + text(turn, 30) for h, c in zip(histories, completions, strict=True)]
    assert_idle(engine)


def test_preempted_requests_resume_from_what_is_still_cached_and_are_billed_once():
    engine = make_engine(num_pages={"full": 30, "swa9": 100})
    completions = engine.generate([text(i, 30) for i in range(3)], SamplingParams(max_tokens=50))
    assert max(c.num_preemptions for c in completions) > 0
    assert [c.usage for c in completions] == [Usage(30, 0, 50)] * 3
    assert engine.stats().num_lookups > 3
    assert engine.stats().hit_tokens > 0


def test_a_request_that_can_never_fit_is_refused_at_once_and_others_proceed():
    engine = make_engine(num_pages={"full": 10, "swa9": 3})
    first = engine.add_request(text(0, 20), SamplingParams(max_tokens=5))
    with pytest.raises(RequestTooLarge, match=r"prompt of 30 tokens with max_tokens=12 .*'full', which has 10"):
        engine.add_request(text(1, 30), SamplingParams(max_tokens=12))
    exact = engine.add_request(text(1, 30), SamplingParams(max_tokens=11))  # the last token needs no slot
    while engine.has_work:
        engine.step()
    assert [len(engine.take(i).tokens) for i in (first, exact)] == [5, 11]
    tiny = make_engine(num_pages={"full": 10, "swa9": 2})
    with pytest.raises(RequestTooLarge, match=r"need 3 pages of pool 'swa9', which has 2"):
        tiny.add_request(text(0, 20), SamplingParams(max_tokens=5))


def test_generate_refuses_before_anything_runs():
    engine = make_engine(num_pages=10)
    with pytest.raises(RequestTooLarge):
        engine.generate([text(0, 10), text(1, 100)])
    assert engine.model.num_forwards == 0
    assert_idle(engine)


def test_sampling_is_reproducible_whatever_the_batch_and_the_cache():
    prompts = [text(i, 20) for i in range(4)]
    params = [SamplingParams(max_tokens=12, temperature=0.9, top_k=20, top_p=0.9, seed=i) for i in range(4)]
    expected = cold(prompts, params)
    assert expected != cold(prompts, SamplingParams(max_tokens=12))
    engine = make_engine(max_tokens_per_step=7)
    assert outputs(engine.generate(prompts, params)) == expected
    assert outputs(engine.generate(prompts, params)) == expected
    completions = make_engine(num_pages={"full": 16, "swa9": 100}).generate(prompts, params)
    assert outputs(completions) == expected
    assert any(c.num_preemptions for c in completions)


def test_stop_tokens_and_eos_end_the_output_with_them():
    params = SamplingParams(max_tokens=40)
    tokens = cold([text(0, 20)], params)[0]
    stop = tokens[7]
    first = tokens.index(stop) + 1
    (stopped,) = make_engine().generate([text(0, 20)], SamplingParams(max_tokens=40, stop_token_ids=(stop,)))
    (ended,) = make_engine(eos_token_ids=(VOCAB, stop)).generate([text(0, 20)], params)
    assert stopped.tokens == ended.tokens == tokens[:first]
    assert stopped.finish_reason is ended.finish_reason is FinishReason.STOP
    (full,) = make_engine().generate([text(0, 20)], params)
    assert full.finish_reason is FinishReason.LENGTH


def test_stream_yields_tokens_as_they_come_and_returns_the_completion():
    engine = make_engine()
    other = engine.add_request(text(1, 20), SamplingParams(max_tokens=3))
    stream = engine.stream(text(0, 20), SamplingParams(max_tokens=5))
    received = [next(stream)]
    with pytest.raises(KeyError):
        engine.take(0 if other else 1)
    while True:
        try:
            received.append(next(stream))
        except StopIteration as stop:
            completion = stop.value
            break
    assert received == completion.tokens == cold([text(0, 20)], SamplingParams(max_tokens=5))[0]
    assert len(engine.take(other).tokens) == 3
    assert_idle(engine)


def test_closing_a_stream_cancels_its_request():
    engine = make_engine()
    stream = engine.stream(text(0, 20), SamplingParams(max_tokens=50))
    next(stream)
    stream.close()
    assert_idle(engine)


def test_the_stream_callback_sees_every_token_in_order():
    engine = make_engine(max_tokens_per_step=16)
    seen = [[] for _ in range(3)]
    prompts = [text(i, 30) for i in range(3)]
    completions = engine.generate(prompts, SamplingParams(max_tokens=6), stream=lambda i, token: seen[i].append(token))
    assert seen == outputs(completions)


def test_a_failing_callback_leaves_nothing_behind():
    engine = make_engine()

    def fail(index, token):
        raise RuntimeError("reader gone")

    with pytest.raises(RuntimeError, match="reader gone"):
        engine.generate([text(0, 20), text(1, 20)], stream=fail)
    assert_idle(engine)


def test_a_failing_forward_can_be_repeated(monkeypatch):
    engine = make_engine()
    request_id = engine.add_request(text(0, 20), SamplingParams(max_tokens=4))
    engine.step()
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    monkeypatch.setattr(engine.model, "forward", forward)
    while engine.has_work:
        engine.step()
    assert engine.take(request_id).tokens == cold([text(0, 20)], SamplingParams(max_tokens=4))[0]
    assert_idle(engine)


def test_cancel_while_waiting_and_while_running():
    engine = make_engine(max_num_seqs=1)
    running, waiting = (engine.add_request(text(i, 20), SamplingParams(max_tokens=30)) for i in range(2))
    for _ in range(3):
        engine.step()
    assert engine.cancel(waiting).finish_reason is FinishReason.CANCELLED
    completion = engine.cancel(running)
    assert len(completion.tokens) == 3 and completion.usage.completion_tokens == 3
    with pytest.raises(KeyError):
        engine.cancel(running)
    assert_idle(engine)


def test_times_are_measured_per_request():
    engine = make_engine(max_num_seqs=1)
    first, second = engine.generate([text(0, 20), text(1, 20)], SamplingParams(max_tokens=8))
    assert 0 < first.time_to_first_token < first.total_time < second.time_to_first_token < second.total_time
    assert first.tokens_per_second == pytest.approx(7 / (first.total_time - first.time_to_first_token))
    (single,) = engine.generate([text(2, 5)], SamplingParams(max_tokens=1))
    assert single.tokens_per_second is None


def test_tenants_do_not_share():
    engine = make_engine()
    params = SamplingParams(max_tokens=2)
    salted = [engine.generate([text(0, 30)], params, salt=salt)[0].usage.cached_tokens for salt in "aba"]
    assert salted == [0, 0, 28]


def test_a_byte_budget_is_split_between_the_pools():
    model = ChainModel(HYBRID)
    engine = Engine(model, model.groups, page_size=4, cache_bytes=1 << 16, max_num_seqs=4, max_tokens_per_step=64)
    pools = engine.stats().pools
    assert sum(p.num_pages * p.bytes_per_page for p in pools.values()) <= 1 << 16
    assert pools["swa9"].num_pages >= (4 * (9 + 4) + 64) // 4
    assert engine.generate([text(0, 30)])[0].tokens == cold([text(0, 30)], SamplingParams())[0]


def test_arguments_are_checked():
    model = ChainModel(HYBRID)
    pages = {"full": 4, "swa9": 4}
    for options in ({}, {"num_pages": pages, "cache_bytes": 1 << 20}):
        with pytest.raises(ValueError, match="give one of num_pages and cache_bytes"):
            Engine(model, model.groups, **options)
    for name in ("max_tokens_per_step", "max_num_seqs"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Engine(model, model.groups, num_pages=pages, **{name: 0})
    with pytest.raises(ValueError, match="params must be one, or one per prompt: 1 for 2"):
        make_engine().generate([[1], [2]], [SamplingParams()])
    with pytest.raises(ValueError, match="tokens must hold at least one token"):
        make_engine().add_request([])


requests = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 3), st.integers(0, 12), st.integers(1, 12)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    windows=st.sampled_from(list(MODELS.values())),
    requests=requests,
    page_size=st.sampled_from([1, 3, 4, 8]),
    room=st.integers(0, 30),
    chunk=st.integers(1, 40),
    max_num_seqs=st.integers(1, 5),
    interval=st.sampled_from([None, 8]),
)
def test_any_traffic_through_any_pools_gives_the_cold_answers(
    windows, requests, page_size, room, chunk, max_num_seqs, interval
):
    prompts = [text(a, n) + text(10 + b, m) for a, n, b, m, _ in requests]
    params = [SamplingParams(max_tokens=new) for *_, new in requests]
    longest = max(len(p) + s.max_tokens for p, s in zip(prompts, params, strict=True))
    engine = make_engine(
        windows,
        page_size,
        num_pages=-(-longest // page_size) + room,
        max_tokens_per_step=chunk,
        max_num_seqs=max_num_seqs,
        policy=SnapshotPolicy(every=interval, quotas={}),
    )
    expected = cold(prompts, params, windows)
    for _ in range(2):
        assert outputs(engine.generate(prompts, params)) == expected
        assert_idle(engine)
