"""Users and their clocks."""

from swa_attn.replay.traces import Conversation, Prompt, Turn
from swa_attn.replay.users import MAX_PAUSE, arrivals, timeline


def turn(name: int, pause: float, seconds: float) -> Turn:
    return Turn(Prompt(name, ()), pause, seconds)


def names(events) -> list[int]:
    return [prompt.num_tokens for prompt in events]


def test_a_request_comes_its_pause_after_the_previous_answer():
    events, seconds = timeline(Conversation((turn(1, 2.0, 3.0), turn(2, 4.0, 1.0), turn(3, 10 * MAX_PAUSE, 5.0))))
    assert [time for time, _ in events] == [2.0, 9.0, 10.0 + MAX_PAUSE]
    assert seconds == 15.0 + MAX_PAUSE


def test_nested_conversations_run_side_by_side_and_are_waited_for():
    inner = Conversation((turn(10, 0.0, 2.0), turn(11, 1.0, 2.0)))
    other = Conversation((turn(20, 0.5, 10.0),))
    events, seconds = timeline(Conversation((turn(1, 0.0, 1.0), inner, other, turn(2, 3.0, 1.0), turn(3, 1.0, 1.0))))
    assert [(time, p.num_tokens) for time, p in events] == [(0, 1), (1, 10), (1.5, 20), (4, 11), (11.5, 2), (13.5, 3)]
    assert seconds == 14.5
    assert timeline(Conversation((turn(1, 0.0, 1.0), other)))[1] == 11.5


def conversations() -> list[Conversation]:
    return [Conversation(tuple(turn(10 * c + n, 1.0, 1.0 + c) for n in range(3))) for c in range(1, 4)]


def test_one_user_holds_one_conversation_after_another():
    assert names(arrivals(conversations(), 1)) == [10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_two_users_take_turns_by_time():
    # first: 1, 4, 7, done at 9; second: 1, 5, 9, done at 12; the third conversation starts at 9: 10, 15, 20
    assert names(arrivals(conversations(), 2)) == [10, 20, 11, 21, 12, 22, 30, 31, 32]


def test_more_users_than_conversations():
    assert sorted(names(arrivals(conversations(), 100))) == [10, 11, 12, 20, 21, 22, 30, 31, 32]
    assert names(arrivals([], 3)) == []
