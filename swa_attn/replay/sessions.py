"""The run-length session format: one conversation per line, nested conversations among its requests."""

from collections.abc import Iterable

from ..runner.shown import shown
from .shared_prompts import SharedPrompts, rename
from .traces import Conversation, Line, Prompt, Trace, Turn

ID_BITS = 32  # of the ids that mean something within one line only
NESTED = "subagent"
MAX_DEPTH = 16  # of conversations in conversations


def read_sessions(lines: Iterable[Line], share_prompts: bool = True) -> Trace:
    """Conversations in the order of the file, their ids made different from line to line.

    Args:
        share_prompts: conversations with equal `tool_tokens` and `system_tokens` begin with the same blocks.
    """
    conversations, block_size = [], None
    shared = SharedPrompts() if share_prompts else None
    for index, line in enumerate(lines):
        given = line.whole("block_size", 1)
        if block_size not in (None, given):
            raise line.fail(f"block_size must be {block_size} as in the lines before, got {given}")
        block_size = given
        if (scope := line.values.get("hash_id_scope", "local")) != "local":
            raise line.fail(f"hash_id_scope must be 'local', got {shown(scope)}")
        prompts = _ids_of_the_trace(line, block_size, index + 1 << ID_BITS, shared)
        if prompts:
            conversations.append(_conversation(line, prompts))
    if block_size is None:
        return Trace("sessions", 1)
    return Trace("sessions", block_size, conversations=tuple(conversations))


def _ids_of_the_trace(line: Line, block_size: int, base: int, shared: SharedPrompts | None) -> dict[int, Prompt]:
    """The prompts of a line's requests, by the request's identity."""
    found = {id(entry.values): _prompt(entry, block_size) for opener in _openers(line) for entry in _plain(opener)}
    renamed = []
    for opener in _openers(line) if shared is not None else ():
        tokens = opener.whole("tool_tokens", 0, 0), opener.whole("system_tokens", 0, 0)
        first = next(_plain(opener), None)
        if first is not None:
            renamed += shared.leading(tokens, found[id(first.values)].runs, sum(tokens) // block_size, renamed)
    return {who: Prompt(p.num_tokens, rename(p.runs, renamed, base)) for who, p in found.items()}


def _entries(line: Line):
    for number, values in enumerate(line.list_of("requests"), 1):
        yield Line(values, f"{line.where}, request {number}")


def _plain(line: Line):
    return (entry for entry in _entries(line) if entry.values.get("type") != NESTED)


def _openers(line: Line, depth: int = 1):
    """The line's conversation and the nested ones: each begins with a tool and a system prompt."""
    if depth > MAX_DEPTH:
        raise line.fail(f"conversations must not be nested more than {MAX_DEPTH} deep")
    yield line
    for entry in _entries(line):
        if entry.values.get("type") == NESTED:
            yield from _openers(entry, depth + 1)


def _prompt(entry: Line, block_size: int) -> Prompt:
    tokens, runs = entry.whole("in", 1), []
    for run in entry.list_of("h"):
        if not (isinstance(run, list) and len(run) == 2 and all(type(n) is int for n in run)):
            raise entry.fail(f"h must be a list of [first, count], got {shown(run)} in it")
        first, count = run
        if count < 1 or first < 0 or first + count > 1 << ID_BITS:
            raise entry.fail(
                f"h must have counts of at least 1 and ids from 0 to 2**{ID_BITS} - 1, got {shown(run)} in it"
            )
        runs.append((first, count))
    full = entry.full_blocks(tokens, block_size)
    if (named := sum(count for _, count in runs)) != full:
        raise entry.fail(f"{tokens} tokens have {full} full blocks of {block_size}, got {named} in h")
    return Prompt(tokens, tuple(runs))


def _conversation(line: Line, prompts: dict[int, Prompt]) -> Conversation:
    turns: list[Turn | Conversation] = []
    previous_start = previous_seconds = None
    for entry in _entries(line):
        if entry.values.get("type") == NESTED:
            turns.append(_conversation(entry, prompts))
            continue
        start, seconds = entry.number("t") or 0.0, _seconds(entry)
        pause = entry.number("think_time")
        if pause is None:
            pause = max(0.0, start - previous_start - previous_seconds) if previous_start is not None else 0.0
        turns.append(Turn(prompts[id(entry.values)], pause, seconds))
        previous_start, previous_seconds = start, seconds
    return Conversation(tuple(turns))


def _seconds(entry: Line) -> float:
    """How long the answer took; the time to its first token, or nothing, where no more was recorded."""
    recorded = entry.number("api_time")
    return recorded if recorded is not None else entry.number("ttft") or 0.0
