"""Mooncake's trace format: one request per line, with the names of its blocks."""

from collections.abc import Iterable

from ..runner.shown import shown
from .traces import Line, Prompt, Trace

BLOCK_SIZE = 512
ID_LIMIT = 1 << 64


def read_mooncake(lines: Iterable[Line], block_size: int | None = None) -> Trace:
    """Requests in order of arrival.

    Fields: `timestamp` (milliseconds), `input_length` (tokens), `hash_ids` (one per block of `block_size` tokens, which
    the file does not say: 512 in what Mooncake published). The name of a partial last block is dropped: it cannot be
    reused.
    """
    block_size = block_size or BLOCK_SIZE
    requests = sorted(((_timestamp(line), _prompt(line, block_size)) for line in lines), key=lambda r: r[0])
    return Trace("mooncake", block_size, arrivals=tuple(prompt for _, prompt in requests))


def _timestamp(line: Line) -> float:
    timestamp = line.number("timestamp")
    if timestamp is None:
        raise line.fail("timestamp is missing")
    return timestamp


def _prompt(line: Line, block_size: int) -> Prompt:
    tokens, ids = line.whole("input_length", 1), line.list_of("hash_ids")
    full = line.full_blocks(tokens, block_size)
    wrong = [i for i in ids if type(i) is not int or not 0 <= i < ID_LIMIT]
    if wrong:
        raise line.fail(f"hash_ids must be integers from 0 to 2**64 - 1, got {shown(wrong[0])} in it")
    if not full <= len(ids) <= -(-tokens // block_size):
        raise line.fail(f"{tokens} tokens have {full} full blocks of {block_size}, got {len(ids)} hash_ids")
    return Prompt(tokens, run_lengths(ids[:full]))


def run_lengths(ids: list[int]) -> tuple[tuple[int, int], ...]:
    """`[(first, count), ...]` of a list of ids."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([i, 1])
    return tuple((first, count) for first, count in runs)
