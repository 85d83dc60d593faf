"""Foreign names and values as they appear in messages: short, printable, in one line."""

import reprlib
from collections.abc import Iterable

_MOST_LISTED = 20
_MOST_CHARACTERS = 120
_MOST_OF_ALL = 200  # lists of strings within lists add up


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 8, 8, 4
        self.maxstring = self.maxother = _MOST_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of more than 4300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 256 else f"an integer of {x.bit_length()} bits"


_short = _Short()


def shown(value: object) -> str:
    """`repr`, cut where it gets long or deep, in one line."""
    text = _short.repr(value)
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= _MOST_OF_ALL else text[: _MOST_OF_ALL - 3] + "..."


def shown_with_type(value: object) -> str:
    """For messages about the type."""
    return f"{shown(value)} ({type(value).__name__})"


def named(name: object) -> str:
    """A name as it is, or as `shown` if it is long, or not printable."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= _MOST_CHARACTERS else shown(name)


def listed(items: Iterable[str]) -> str:
    """The first items, and how many more there are. Foreign names in them have been `named`."""
    items = list(items)
    more = f" and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else ""
    return ", ".join(items[:_MOST_LISTED]) + more


def in_one_line(error: BaseException) -> str:
    """What an error of another library says."""
    return " ".join(str(error).split())
