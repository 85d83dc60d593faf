"""Something happens at a chosen line of the package: a signal, or an exception out of nowhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import swa_attn

PACKAGE = str(Path(swa_attn.__file__).parent)
Line = tuple[str, int]


def traced(call: Callable[[], object], each: Callable[[Line], None]) -> None:
    """Run `call`, and `each` before every line of the engine and the cache that it goes through, in this thread."""

    def trace(frame: FrameType, event: str, _: object):
        name = frame.f_code.co_filename
        if not name.startswith((f"{PACKAGE}/runner", f"{PACKAGE}/kvcache")):
            return None
        if event == "line":
            each((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)


def lines_of(call: Callable[[], object]) -> list[Line]:
    """All lines that a call goes through, in order."""
    lines: list[Line] = []
    traced(call, lines.append)
    return lines


def places(lines: list[Line]) -> list[int]:
    """The first and the last time of every line, as positions among all lines."""
    first = {line: i for i, line in reversed([*enumerate(lines)])}
    last = {line: i for i, line in enumerate(lines)}
    return sorted({*first.values(), *last.values()})


def at(place: int, happens: Callable[[], None], call: Callable[[], object]) -> None:
    """Run `call`; before its line number `place` something happens."""
    left = [place]

    def count(_: Line) -> None:
        left[0] -= 1
        if left[0] == -1:
            happens()

    traced(call, count)
