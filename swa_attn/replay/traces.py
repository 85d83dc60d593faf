"""Request traces: what a request is here, and which reader a file needs."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

GZIP_MAGIC = b"\x1f\x8b"


class TraceError(ValueError):
    """A trace cannot be read; the message begins with the file and, where it is one line's fault, the line."""


class Prompt(NamedTuple):
    """One request: its prompt's length and the names of its full blocks.

    `runs` is the run-length form `(first id, count)` of the names, which are chained: equal ids mean equal tokens up to
    the block's end. They are ids of the whole trace, not of one conversation.
    """

    num_tokens: int
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Turn:
    """A request within a conversation, with the seconds before it (since the previous answer) and until its answer."""

    prompt: Prompt
    pause: float
    seconds: float


@dataclass(frozen=True)
class Conversation:
    """Turns in order; a conversation among them was started by the turn before it, and the next turn waits for it."""

    turns: "tuple[Turn | Conversation, ...]"

    def __iter__(self) -> Iterator[Turn]:
        """All turns, those of nested conversations where these were started."""
        for turn in self.turns:
            if isinstance(turn, Turn):
                yield turn
            else:
                yield from turn


@dataclass(frozen=True)
class Trace:
    """What a file holds: either `arrivals`, requests in order of arrival, or `conversations` for users to hold."""

    format: str
    block_size: int
    arrivals: tuple[Prompt, ...] = ()
    conversations: tuple[Conversation, ...] = ()


class Line:
    """One JSON object of a trace, which knows where it stands: fields are checked as they are asked for."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise TraceError(f"{where}: expected a JSON object, got {_shown(values)}")
        self.values, self.where = values, where

    def fail(self, message: str) -> TraceError:
        return TraceError(f"{self.where}: {message}")

    def whole(self, name: str, minimum: int, default: int | None = None) -> int:
        """An integer field."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(f"{name} must be an integer of at least {minimum}, got {self._given(name)}")
        return value

    def number(self, name: str) -> float | None:
        """A field with a number that is not negative; None when it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise self.fail(f"{name} must be a number of at least 0, got {self._given(name)}")
        return value

    def list_of(self, name: str) -> list:
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.fail(f"{name} must be a list, got {self._given(name)}")
        return value

    def _given(self, name: str) -> str:
        return _shown(self.values[name]) if name in self.values else "none"


def read_lines(path: Path) -> Iterator[Line]:
    """The JSON objects of a file, gzip or plain, one per line; empty lines are skipped."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield Line(_parsed(text, f"{path}:{number}"), f"{path}:{number}")
    except (OSError, EOFError) as error:
        raise TraceError(
            f"{path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TraceError(f"{where}: not JSON: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
