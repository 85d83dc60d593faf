"""Whose turn it is, and what waits for it: other threads, Ctrl-C, and what was dropped meanwhile."""

import os
import signal
import sys
import threading
from contextlib import contextmanager

import pytest
from chain_model import ChainModel

from swa_attn.kvcache import LowerTiers
from swa_attn.runner import Engine, SamplingParams, turns
from swa_attn.runner.interrupts import InterruptHold
from swa_attn.runner.turns import Inside, Turns

PARAMS = SamplingParams(max_tokens=3)
PROMPT = list(range(20))


def make_engine(**options) -> Engine:
    model = ChainModel((None, 5))
    return Engine(model, model.groups, page_size=4, num_pages={"full": 40, "swa5": 20}, **options)


def make_turns(owner: str = "Thing", end=lambda: None, is_due=lambda: False) -> Turns:
    return Turns(owner, lambda name: None, end, is_due)


@contextmanager
def in_thread(call):
    """`call` runs in another thread meanwhile."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(timeout=30)
        assert not thread.is_alive()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_holder_that_ends_normally_between_two_looks_was_not_cut_short(monkeypatch):
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    mine = make_turns()
    taken, give_back = threading.Event(), threading.Event()

    def hold() -> None:
        with mine("first"):
            taken.set()
            assert give_back.wait(30)

    is_over = Inside.is_over.fget

    def slow(inside: Inside) -> bool:
        """The holder ends while the one that waits has its `Inside` in hand."""
        give_back.set()
        holder.join(timeout=30)
        return is_over(inside)

    with in_thread(hold) as holder:
        assert taken.wait(30)
        monkeypatch.setattr(Inside, "is_over", property(slow))
        with mine("second"):
            assert mine._inside.name == "second"


def test_a_holder_that_never_gives_back_is_named(monkeypatch):
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    mine = make_turns()

    def leave() -> None:
        mine.take("first", sys._getframe(), InterruptHold())

    with in_thread(leave):
        pass
    with (
        pytest.raises(RuntimeError, match=r"^Thing\.second: Thing\.first of another thread was cut short"),
        mine("second"),
    ):
        pass


@pytest.mark.parametrize("wait", ["generate", "stream"])
def test_an_interrupt_reaches_a_call_that_waits_for_another_thread(wait, monkeypatch):
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    engine = make_engine()
    inside, go_on = threading.Event(), threading.Event()
    forward = engine.model.forward

    def slow(*args):
        inside.set()
        assert go_on.wait(30)
        return forward(*args)

    other = []
    engine.model.forward = slow
    with in_thread(lambda: other.extend(engine.generate([PROMPT], PARAMS))):
        assert inside.wait(30)
        try:
            threading.Timer(0.05, interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                engine.generate([PROMPT], PARAMS) if wait == "generate" else engine.stream(PROMPT, PARAMS)
            assert not go_on.is_set(), "the other thread is still in its step"
        finally:
            go_on.set()
    assert other[0].error is None and len(other[0].tokens) == 3
    assert not engine.has_work and not engine._requests
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_within_a_callback_is_held_too():
    engine = make_engine()
    forward, within = engine.model.forward, []

    def interrupted(*args):
        interrupt()
        within.append("after the signal")
        return forward(*args)

    def callback(index: int, token: int) -> None:
        request_id = engine.add_request([5, 6, 7], SamplingParams(max_tokens=1))
        engine.model.forward = interrupted
        try:
            engine.step()
        finally:
            engine.model.forward = forward
            within.append(engine.take(request_id).error)

    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPT], PARAMS, stream=callback)
    assert within == ["after the signal", None]
    assert not engine.has_work and not engine._changes.torn
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_becomes_due_when_a_turn_is_nearly_over_is_done_after_it():
    due, log = [], []
    mine = make_turns(end=lambda: (log.append(list(due)), due.clear()), is_due=lambda: bool(due))
    give_back = mine.give_back

    def late() -> None:
        """Another thread drops something after `end` has been called, and does not get the turn."""
        mine.give_back = give_back

        def drop() -> None:
            due.append("late")
            mine.end_if_due("drop")

        with in_thread(drop):
            pass
        assert due == ["late"]
        give_back()

    mine.give_back = late
    with mine("step"):
        pass
    assert log == [[], ["late"]] and not due and mine._inside is None


def test_an_engine_that_cannot_be_made_leaves_no_thread():
    lower = LowerTiers({"full": 20, "swa5": 20})
    for wrong in ({"max_num_seqs": 0}, {"max_tokens_per_step": 0}, {"hash_key": b"x"}, {"fingerprint": 3}):
        with pytest.raises((ValueError, TypeError)):
            make_engine(lower=lower, **wrong)
    assert not [t for t in threading.enumerate() if t.name == "swa_attn copies"]
