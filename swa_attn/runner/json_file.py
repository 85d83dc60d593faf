"""A JSON object read from a file that somebody else wrote: strictly, in bounded memory, with one kind of error."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from .shown import in_one_line, shown

MOST_CONFIG_BYTES = 16 << 20


def read_json_object(path: Path, error: type[ValueError], most_bytes: int) -> dict[str, Any]:
    """The object in `path`, whose fields are distinct and whose numbers are finite.

    Raises:
        error: the file is not a regular one, has more than `most_bytes` bytes, is not UTF-8 or not JSON, nests too
            deeply, names a field twice, holds NaN or an infinity, or is not an object.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: opening a FIFO waits for its other end
        raise error(f"{path} is not a regular file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise error(f"{path} has more than {most_bytes} bytes")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{path} names the field {shown(twice)} twice")
        return found

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise error(f"{path} holds {shown(text)}, which is not a finite number")
        return number

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=distinct, parse_float=finite, parse_constant=finite)
    except error:
        raise
    except RecursionError:
        raise error(f"{path} is not JSON: nested too deeply") from None
    except ValueError as reason:  # of the decoder, of the parser, or an integer of thousands of digits
        raise error(f"{path} is not JSON: {in_one_line(reason)}") from None
    if not isinstance(found, dict):
        raise error(f"{path} must hold a JSON object, got {shown(found)}")
    return found
