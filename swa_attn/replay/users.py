"""Who asks when: users who hold one conversation after another."""

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heapreplace

from .traces import Conversation, Prompt, Turn

MAX_PAUSE = 30 * 60.0


def timeline(conversation: Conversation, max_pause: float = MAX_PAUSE) -> tuple[list[tuple[float, Prompt]], float]:
    """When each request of a conversation is made, and when the last answer is there: seconds since its start.

    A request comes its pause, but at most `max_pause`, after the previous answer. Nested conversations start at that
    answer, side by side; the next request waits for their end.
    """
    events: list[tuple[float, Prompt]] = []
    answered = nested_end = 0.0
    for turn in conversation.turns:
        if isinstance(turn, Turn):
            start = max(answered + min(turn.pause, max_pause), nested_end)
            events.append((start, turn.prompt))
            answered = start + turn.seconds
        else:
            inner, seconds = timeline(turn, max_pause)
            events += [(answered + start, prompt) for start, prompt in inner]
            nested_end = max(nested_end, answered + seconds)
    events.sort(key=lambda event: event[0])
    return events, max(answered, nested_end)


def arrivals(conversations: Sequence[Conversation], num_users: int, max_pause: float = MAX_PAUSE) -> Iterator[Prompt]:
    """The requests of `num_users` users in the order in which they are made.

    All users start at once; each takes the next conversation of the list when it has done with one.
    """
    timelines = (timeline(c, max_pause) for c in conversations)
    waiting = []
    for user, found in zip(range(num_users), timelines, strict=False):
        if found[0]:
            waiting.append((found[0][0][0], user, 0, 0.0, found))
    heapify(waiting)
    while waiting:
        _, user, number, start, (events, seconds) = waiting[0]
        yield events[number][1]
        if number + 1 == len(events):
            start, number = start + seconds, -1
            following = next(timelines, None)
            if following is None:
                heappop(waiting)
                continue
            events, seconds = following
        number += 1
        heapreplace(waiting, (start + events[number][0], user, number, start, (events, seconds)))
