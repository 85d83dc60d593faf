"""A signal or an exception at any line of a step: the engine goes on, and nothing is left behind."""

import os
import random
import signal
import threading
from contextlib import suppress

import pytest
from chain_model import RebuildingModel
from cutting import at, lines_of, places

from swa_attn.kvcache import LowerTiers, SnapshotPolicy, Torn, WritePolicy
from swa_attn.runner.engine import Engine
from swa_attn.runner.request import FinishReason
from swa_attn.runner.sampler import SamplingParams

HYBRID = (None, 5, 5, None, 5)
PARAMS = SamplingParams(max_tokens=3)
SAMPLE = 12  # places of the default suite; the slow tests take all


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(1000) for _ in range(length)]


SHARED = text(0, 24)
PROMPTS = [[*SHARED, 1, 2], [*SHARED, 3], text(1, 9)]
BYSTANDER = [*SHARED, 7, 8, 9]


class Cut(Exception):
    """Comes from nowhere."""


def make_engine(lower: LowerTiers | None = None) -> Engine:
    model = RebuildingModel(HYBRID)
    pages = {"full": 21, "swa5": 9}  # so that pages are evicted, and now and then a request gives way
    return Engine(
        model,
        model.groups,
        page_size=4,
        num_pages=pages,
        max_tokens_per_step=16,
        policy=SnapshotPolicy(fixed=(8,)),
        lower=lower,
    )


def cold(prompt: list[int], params: SamplingParams) -> list[int]:
    model = RebuildingModel(HYBRID)
    engine = Engine(model, model.groups, page_size=4, num_pages={"full": 99, "swa5": 99}, enable_prefix_cache=False)
    return engine.generate([prompt], params)[0].tokens


WANTED = [cold(prompt, PARAMS) for prompt in PROMPTS]
LONG = SamplingParams(max_tokens=6)
LONG_WANTED = cold(BYSTANDER, LONG)


def assert_whole(engine: Engine, bystander: int, *, unharmed: bool) -> None:
    """Everybody gets the right answer, and nothing is left behind."""
    assert [c.tokens for c in engine.generate(PROMPTS, PARAMS)] == WANTED
    while engine.has_work:
        engine.step()
    completion = engine.take(bystander)
    if unharmed or completion.error is None:
        assert completion.tokens == LONG_WANTED and completion.finish_reason is FinishReason.LENGTH
    else:
        assert completion.finish_reason is FinishReason.ERROR and f"request {bystander}: " in completion.error
        assert completion.tokens == LONG_WANTED[: len(completion.tokens)]
    assert not engine._requests and not engine._finished and not engine._dropped
    while engine.cache.num_pending:
        engine.cache.poll(timeout=10)
    assert all(pool.in_use == 0 for pool in engine.stats().pools.values())
    runs = [engine.cache.prefixes.tree.root]
    for run in runs:
        assert run.pins == [0, 0, 0]
        runs.extend(run.children.values())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def scenario(lower=None) -> tuple[Engine, int, object]:
    """An engine with a past, somebody else's request that is running, and the call that is cut short."""
    engine = make_engine(lower)
    engine.generate(PROMPTS[:1], PARAMS)
    bystander = engine.add_request(BYSTANDER, LONG)
    engine.step()
    return engine, bystander, lambda: engine.generate(PROMPTS, PARAMS)


def chosen(all_of_them: bool) -> list[int]:
    engine, _, call = scenario()
    found = places(lines_of(call))
    engine.close()
    assert len(found) > 500
    return found if all_of_them else sorted(random.Random(0).sample(found, SAMPLE))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def cut() -> None:
    raise Cut


def check_interrupts(wanted: list[int]) -> None:
    for place in wanted:
        engine, bystander, call = scenario()
        with pytest.raises(KeyboardInterrupt):
            at(place, interrupt, call)
        assert_whole(engine, bystander, unharmed=True)


def check_exceptions(wanted: list[int]) -> None:
    for place in wanted:
        engine, bystander, call = scenario()
        with suppress(Cut, Torn):  # or it became the error of one request
            at(place, cut, call)
        assert_whole(engine, bystander, unharmed=False)


def test_an_interrupt_comes_out_between_two_steps_and_harms_nobody():
    check_interrupts(chosen(False))


def test_an_exception_at_any_line_leaves_an_engine_that_works():
    check_exceptions(chosen(False))


def check_tiers(wanted: int, seed: int) -> None:
    """With a thread that copies: what is under way when the exception comes ends before its pages are used again."""
    generator = random.Random(seed)
    lower = LowerTiers({"full": 12, "swa5": 8}, write_policy=WritePolicy.THROUGH)
    for _ in range(wanted):
        engine, bystander, call = scenario(lower)
        with engine:
            with suppress(Cut, Torn):
                at(generator.randrange(9000), cut, call)
            assert_whole(engine, bystander, unharmed=False)
    assert not [t for t in threading.enumerate() if t.name == "swa_attn copies"]


def test_an_exception_while_pages_are_copied_leaves_an_engine_that_works():
    check_tiers(6, seed=1)


@pytest.mark.slow
def test_an_exception_at_many_lines_while_pages_are_copied():
    check_tiers(300, seed=2)


@pytest.mark.parametrize("action", ["step", "close"])
def test_what_cannot_be_made_whole_says_so_and_can_be_closed(action, monkeypatch):
    engine, bystander, _ = scenario()
    reset = engine.cache.mover.reset

    def stuck() -> None:
        raise RuntimeError("2 reads or writes of the store did not end within 30.0 seconds")

    monkeypatch.setattr(engine.cache, "commit", lambda *args: 1 / 0)
    monkeypatch.setattr(engine.cache.mover, "reset", stuck)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    for method in (engine.step, engine.stats, lambda: engine.add_request([1]), lambda: engine.take(bystander)):
        with pytest.raises(RuntimeError, match="2 reads or writes of the store did not end"):
            method()
    if action == "close":
        engine.close()
        with pytest.raises(RuntimeError, match=r"Engine\.step: the engine is closed"):
            engine.step()
    else:
        monkeypatch.setattr(engine.cache.mover, "reset", reset)
        monkeypatch.undo()
        assert_whole(engine, bystander, unharmed=False)


def test_the_second_interrupt_comes_at_once_and_the_engine_recovers():
    engine, bystander, _ = scenario()
    forward = engine.model.forward

    def hang(*args):
        interrupt()
        interrupt()
        raise AssertionError("the second one must have come out")

    engine.model.forward = hang
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.model.forward = forward
    assert_whole(engine, bystander, unharmed=True)  # a forward changes nothing


def test_an_interrupt_reaches_a_handler_of_the_program_once_and_after_the_step():
    engine, bystander, _ = scenario()
    seen = []
    own = signal.signal(signal.SIGINT, lambda number, frame: seen.append(engine._changes.torn))
    try:
        forward = engine.model.forward
        engine.model.forward = lambda *args: (interrupt(), forward(*args))[1]
        assert engine.step() and seen == [False]
        engine.model.forward = forward
    finally:
        signal.signal(signal.SIGINT, own)
    assert_whole(engine, bystander, unharmed=True)


def test_a_handler_that_is_installed_during_a_step_stays():
    engine, bystander, _ = scenario()
    seen = []
    forward, before = engine.model.forward, signal.getsignal(signal.SIGINT)

    def install(*args):
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        return forward(*args)

    engine.model.forward = install
    try:
        engine.step()
        interrupt()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    engine.model.forward = forward
    assert_whole(engine, bystander, unharmed=True)


def test_an_interrupt_in_a_callback_comes_out_in_the_callback():
    engine, bystander, _ = scenario()
    reached = []

    def callback(index: int, token: int) -> None:
        interrupt()
        reached.append(token)

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, PARAMS, stream=callback)
    assert not reached
    assert_whole(engine, bystander, unharmed=True)


@pytest.mark.slow
def test_an_interrupt_at_every_line():
    check_interrupts(chosen(True))


@pytest.mark.slow
def test_an_exception_at_every_line():
    check_exceptions(chosen(True))
