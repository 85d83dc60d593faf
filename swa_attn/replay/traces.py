"""Request traces: what a request is here, and which reader a file needs."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..runner.shown import shown

GZIP_MAGIC = b"\x1f\x8b"
MAX_LINE_BYTES = 16 << 20  # a hundred times the longest line of the published traces
# Of one prompt: in run-length form a few bytes can name more blocks than memory holds.
MAX_TOKENS = 1 << 24
MAX_BLOCKS = 1 << 20
MAX_NUMBER = 2.0**53  # of seconds and milliseconds; up to it differences are exact


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
            raise TraceError(f"{where}: expected a JSON object, got {shown(values)}")
        self.values, self.where = values, where

    def fail(self, message: str) -> TraceError:
        return TraceError(f"{self.where}: {message}")

    def whole(self, name: str, minimum: int, default: int | None = None) -> int:
        """An integer field that counts tokens."""
        value = self.values.get(name, default)
        if type(value) is not int or not minimum <= value <= MAX_TOKENS:
            raise self.fail(f"{name} must be an integer from {minimum} to {MAX_TOKENS}, got {self._given(name)}")
        return value

    def number(self, name: str) -> float | None:
        """A field with a number from 0 to `MAX_NUMBER`; None when it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 <= value <= MAX_NUMBER:
            raise self.fail(f"{name} must be a number from 0 to {MAX_NUMBER:.0f}, got {self._given(name)}")
        return float(value)

    def full_blocks(self, tokens: int, block_size: int) -> int:
        """How many the line's prompt must name."""
        if (full := tokens // block_size) > MAX_BLOCKS:
            raise self.fail(f"{tokens} tokens have {full} full blocks of {block_size}, expected at most {MAX_BLOCKS}")
        return full

    def list_of(self, name: str) -> list:
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.fail(f"{name} must be a list, got {self._given(name)}")
        return value

    def _given(self, name: str) -> str:
        return shown(self.values[name]) if name in self.values else "none"


def read_lines(path: Path) -> Iterator[Line]:
    """The JSON objects of a file, gzip or plain, one per line; empty lines are skipped. No more of the file is in memory
    than one line, whose length is limited. Raises TraceError."""
    where = str(path)
    try:
        with path.open("rb") as raw:
            packed = raw.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)  # what is no file, a pipe, can be read only once
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            number = 1
            where = f"{path}:{number}"
            while text := file.readline(MAX_LINE_BYTES + 1):
                if len(text) > MAX_LINE_BYTES:
                    raise TraceError(f"{where}: the line is longer than the limit of {MAX_LINE_BYTES} bytes")
                if text.strip():
                    yield Line(_parsed(text, where), where)
                number += 1
                where = f"{path}:{number}"
    except OSError as error:
        raise TraceError(f"{where}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:  # of a gzip file
        raise TraceError(f"{where}: {error}") from None


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise TraceError(f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}") from None
    except ValueError as error:
        raise TraceError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise TraceError(f"{where}: its lists and objects are nested too deep") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
