"""A stream gives every token once, whoever runs the steps, and its request ends with it."""

import gc
import threading

import pytest
from chain_model import ChainModel

from swa_attn.runner import Engine, FinishReason, SamplingParams

HYBRID = (None, 9)
PARAMS = SamplingParams(max_tokens=12)


def make_engine(**options) -> Engine:
    model = ChainModel(HYBRID)
    return Engine(model, model.groups, page_size=4, num_pages={"full": 100, "swa9": 100}, **options)


def text(seed: int, length: int = 20) -> list[int]:
    return [(seed * 37 + i * 11) % 61 for i in range(length)]


def cold(prompt: list[int], params: SamplingParams = PARAMS) -> list[int]:
    return make_engine(enable_prefix_cache=False).generate([prompt], params)[0].tokens


def assert_idle(engine: Engine) -> None:
    assert not engine.has_work and not engine._requests and not engine._finished and not engine._dropped
    assert all(pool.in_use == 0 for pool in engine.stats().pools.values())


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("how", ["close", "drop", "drop in a cycle", "with", "throw"])
def test_a_stream_that_goes_away_ends_its_request(how, taken):
    engine = make_engine()
    other = engine.add_request(text(1), PARAMS)
    stream = engine.stream(text(0), PARAMS)
    assert [next(stream) for _ in range(taken)] == cold(text(0))[:taken]
    if how == "close":
        stream.close()
        stream.close()
        assert stream.completion.finish_reason is FinishReason.CANCELLED and len(stream.completion.tokens) == taken
        with pytest.raises(StopIteration) as end:
            next(stream)
        assert end.value.value == stream.completion
    elif how == "with":
        with stream:
            pass
    elif how == "throw":
        forward, engine.model.forward = engine.model.forward, lambda *args: 1 / 0
        with pytest.raises(ZeroDivisionError):
            next(stream)
        engine.model.forward = forward
        assert next(stream, None) is None
    elif how == "drop in a cycle":
        stream.itself = stream
    del stream
    if "cycle" in how:
        gc.collect()
    assert list(engine._requests) == [other]
    while engine.has_work:
        engine.step()
    assert engine.take(other).tokens == cold(text(1))
    assert_idle(engine)


def test_streams_that_take_turns_get_every_token():
    engine = make_engine()
    streams = [engine.stream(text(i), PARAMS) for i in range(3)]
    received = [[], [], []]
    for _ in range(PARAMS.max_tokens):
        for stream, tokens in zip(streams, received, strict=True):
            tokens.append(next(stream))
    assert received == [cold(text(i)) for i in range(3)]
    assert [next(s, "over") for s in streams] == ["over"] * 3
    assert [s.completion.tokens for s in streams] == received
    assert_idle(engine)


def test_yield_from_gives_the_completion():
    engine = make_engine()

    def passing_on():
        completion = yield from engine.stream(text(0), PARAMS)
        results.append(completion)

    results = []
    assert [*passing_on()] == cold(text(0)) == results[0].tokens
    assert results[0].finish_reason is FinishReason.LENGTH
    generator = passing_on()
    next(generator)
    generator.close()
    del generator
    assert_idle(engine)


def test_a_stream_of_a_closed_engine_is_over():
    engine = make_engine()
    stream = engine.stream(text(0), PARAMS)
    next(stream)
    engine.close()
    assert next(stream, "over") == "over" and stream.completion.finish_reason is FinishReason.CANCELLED
    with pytest.raises(RuntimeError, match=r"Engine\.add_request: the engine is closed"):
        engine.stream(text(0), PARAMS)
    assert_idle(engine)


def test_a_stream_dropped_in_the_middle_of_a_step_ends_with_the_step():
    engine = make_engine()
    kept = engine.stream(text(1), PARAMS)
    dropped = [engine.stream(text(0), PARAMS)]
    forward = engine.model.forward
    engine.model.forward = lambda *args: (dropped.clear(), forward(*args))[1]
    assert next(kept) == cold(text(1))[0]
    assert list(engine._requests) == [kept.request_id]
    assert [*kept] == cold(text(1))[1:]
    assert_idle(engine)


def run_threads(*calls) -> list:
    """Runs all at once; returns their results, or what they raised."""
    results: list = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def test_threads_take_turns_and_get_their_own_answers():
    engine = make_engine(max_tokens_per_step=24)
    seen: list[list[int]] = [[], []]
    results = run_threads(
        lambda: engine.generate([text(0), text(1)], PARAMS)[1].tokens,
        lambda: [*engine.stream(text(2), PARAMS)],
        lambda: engine.generate([text(3)], PARAMS, stream=lambda i, t: seen[0].append(t))[0].tokens,
        lambda: engine.generate([text(4)], PARAMS, stream=lambda i, t: seen[1].append(t))[0].tokens,
        lambda: [engine.stats().num_lookups for _ in range(50)] and None,
    )
    assert results == [*(cold(text(i)) for i in (1, 2, 3, 4)), None]
    assert seen == results[2:4]
    assert_idle(engine)


def test_closing_from_another_thread_waits_for_the_step():
    engine = make_engine()
    inside, go_on = threading.Event(), threading.Event()
    forward = engine.model.forward

    def slow(*args):
        inside.set()
        assert go_on.wait(30)
        return forward(*args)

    engine.model.forward = slow

    def close() -> str:
        assert inside.wait(30)
        threading.Timer(0.05, go_on.set).start()
        engine.close()
        return "closed"

    result, closed = run_threads(lambda: engine.generate([text(0)], PARAMS)[0], close)
    assert closed == "closed"
    if isinstance(result, RuntimeError):
        assert str(result) == "Engine.step: the engine is closed"
    else:
        assert result.finish_reason is FinishReason.CANCELLED
    assert_idle(engine)


@pytest.mark.parametrize("call", ["step", "stats", "close", "clear_cache", "add_request", "generate"])
def test_a_call_from_within_a_step_is_refused_by_name(call):
    engine = make_engine()
    arguments = {"add_request": [text(1)], "generate": [[text(1)]]}.get(call, [])
    forward = engine.model.forward
    engine.model.forward = lambda *args: getattr(engine, call)(*arguments)
    request_id = engine.add_request(text(0), PARAMS)
    name = {"generate": "add_request"}.get(call, call)
    with pytest.raises(RuntimeError, match=rf"Engine\.{name}: called from within Engine\.step, by its model"):
        engine.step()
    engine.model.forward = forward
    while engine.has_work:
        engine.step()
    assert engine.take(request_id).tokens == cold(text(0))
    assert_idle(engine)
