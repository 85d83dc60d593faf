"""Reading traces: both formats, their quirks, and what is said about a broken line."""

import gzip
import json
import os
import threading
import tracemalloc

import pytest
from traces_by_hand import mooncake, nested, session, turn, write

from swa_attn.replay.mooncake import run_lengths
from swa_attn.replay.traces import MAX_LINE_BYTES, MAX_TOKENS, Conversation, TraceError
from swa_attn.replay.workload import read_trace


@pytest.mark.parametrize("packed", [False, True])
def test_mooncake_drops_the_partial_block_and_orders_by_arrival(tmp_path, packed):
    rows = [mooncake(1100, [7, 8, 9], timestamp=20), mooncake(1024, [7, 8], timestamp=10), "", mooncake(5, [], 30)]
    trace = read_trace(write(tmp_path / "any.name", rows, packed))
    assert (trace.format, trace.block_size) == ("mooncake", 512)
    assert [(p.num_tokens, p.runs) for p in trace.arrivals] == [(1024, ((7, 2),)), (1100, ((7, 2),)), (5, ())]


def test_mooncake_block_size_is_the_callers(tmp_path):
    path = write(tmp_path / "t", [mooncake(100, [3, 1, 2, 9])])
    assert read_trace(path, block_size=32).arrivals[0].runs == ((3, 1), (1, 2))


def test_run_lengths():
    assert run_lengths([]) == ()
    assert run_lengths([4, 5, 6, 1, 2, 2]) == ((4, 3), (1, 2), (2, 1))


def test_sessions_number_their_lines_apart(tmp_path):
    rows = [session([turn(130, [[1, 2]])]), session([turn(130, [[1, 2]]), turn(70, [[1, 1]])])]
    trace = read_trace(write(tmp_path / "t", rows))
    assert (trace.format, trace.block_size, trace.arrivals) == ("sessions", 64, ())
    first, second = trace.conversations
    ids = [t.prompt.runs[0][0] for c in (first, second) for t in c]
    assert ids[0] != ids[1] == ids[2]


def test_sessions_keep_nested_conversations_where_they_stand(tmp_path):
    inner = nested([turn(64, [[5, 1]]), turn(128, [[5, 2]])])
    trace = read_trace(write(tmp_path / "t", [session([turn(64, [[1, 1]]), inner, turn(128, [[1, 2]])])]))
    turns = trace.conversations[0].turns
    assert [isinstance(t, Conversation) for t in turns] == [False, True, False]
    assert [t.prompt.num_tokens for t in trace.conversations[0]] == [64, 64, 128, 128]


def test_sessions_fill_in_missing_times(tmp_path):
    rows = [turn(64, [[1, 1]]), turn(64, [[1, 1]], t=10.0), turn(64, [[1, 1]], t=30.0)]
    for row in rows:
        del row["api_time"], row["think_time"]
    rows[1]["ttft"] = 4.0
    turns = read_trace(write(tmp_path / "t", [session(rows)])).conversations[0].turns
    assert [(t.pause, t.seconds) for t in turns] == [(0.0, 0.0), (10.0, 4.0), (16.0, 0.0)]


def test_sessions_without_requests_are_no_conversations(tmp_path):
    rows = [session([]), session([nested([])]), session([turn(64, [[1, 1]])])]
    assert len(read_trace(write(tmp_path / "t", rows)).conversations) == 1


SHARED = {"tool": 100, "system": 60}  # 160 tokens: two full blocks


def test_equal_tool_and_system_prompts_are_the_same_blocks(tmp_path):
    rows = [
        session([turn(256, [[1, 4]])], **SHARED),
        session([turn(256, [[10, 1], [20, 3]]), turn(256, [[10, 1], [30, 3]])], **SHARED),
        session([turn(256, [[1, 4]])], tool=100, system=61),
    ]
    path = write(tmp_path / "t", rows)
    ids = [[i + j for i, n in t.prompt.runs for j in range(n)] for c in read_trace(path).conversations for t in c]
    assert ids[0][:2] == ids[1][:2] and not set(ids[0][2:]) & set(ids[1][2:])
    assert ids[2][0] == ids[0][0] and ids[2][1] != ids[0][1]  # the second turn of that line has another second block
    assert not set(ids[3]) & {i for other in ids[:3] for i in other}
    assert len({i for row in ids for i in row}) == 4 + 2 + 3 + 4
    apart = read_trace(path, share_prompts=False).conversations
    assert apart[0].turns[0].prompt.runs[0][0] != apart[1].turns[0].prompt.runs[0][0]


def test_a_nested_conversation_on_its_parents_blocks_is_not_renamed_twice(tmp_path):
    inner = nested([turn(256, [[1, 1], [50, 3]])], tool=192)
    rows = [session([turn(256, [[1, 4]]), inner], tool=64), session([turn(256, [[1, 4]])], tool=192)]
    first, second = read_trace(write(tmp_path / "t", rows)).conversations
    outer, nested_prompt = (t.prompt for t in first)
    assert nested_prompt.runs[0] == (outer.runs[0][0], 1)
    assert nested_prompt.runs[1][0] not in {i for i, _ in second.turns[0].prompt.runs}


BROKEN = [
    ("{", "2: not JSON"),
    ("[1]", "2: expected a JSON object, got [1]"),
    (mooncake(0, []), "2: input_length must be an integer from 1 to 16777216, got 0"),
    ({"timestamp": 0, "hash_ids": []}, "2: input_length must be an integer from 1 to 16777216, got none"),
    ({"input_length": 5, "hash_ids": []}, "2: timestamp is missing"),
    (mooncake(5, [], timestamp=-1), "2: timestamp must be a number from 0 to 9007199254740992, got -1"),
    (mooncake(1030, [1]), "2: 1030 tokens have 2 full blocks of 512, got 1 hash_ids"),
    (mooncake(1030, [1, 2, 3, 4]), "2: 1030 tokens have 2 full blocks of 512, got 4 hash_ids"),
    (mooncake(600, [1, "x"]), "2: hash_ids must be integers from 0 to 2**64 - 1, got 'x' in it"),
    ({"timestamp": 0, "input_length": 600, "hash_ids": 3}, "2: hash_ids must be a list, got 3"),
]


DEEP = 100_000
BROKEN += [
    ('{"hash_ids": ' + "[" * DEEP + "]" * DEEP + "}", "2: its lists and objects are nested too deep"),
    (b'{"a": "\xff"}', "2: not UTF-8: invalid start byte at byte 8"),
    (b"\xef\xbb\xbf{}", "2: not JSON: Unexpected UTF-8 BOM"),
    (b'{"timestamp": 0, "input_length": 5, "hash_', "2: not JSON: "),
    ('{"timestamp": NaN, "input_length": 5, "hash_ids": []}', "2: not JSON: NaN is no number"),
    ('{"timestamp": 0, "input_length": -Infinity, "hash_ids": []}', "2: not JSON: -Infinity is no number"),
    ('{"timestamp": 1e999, "input_length": 5, "hash_ids": []}', "2: timestamp must be a number from 0 to 90"),
    ('{"timestamp": 0, "input_length": %s, "hash_ids": []}' % ("9" * 10_000), "2: "),
    (mooncake(10**18, []), "2: input_length must be an integer from 1 to 16777216, got 1000000000000000000"),
    (mooncake(MAX_TOKENS + 1, []), "2: input_length must be an integer from 1 to 16777216, got 16777217"),
    (mooncake(True, []), "2: input_length must be an integer from 1 to 16777216, got True"),
    (mooncake(5.0, []), "2: input_length must be an integer from 1 to 16777216, got 5.0"),
    (mooncake("x" * 10**6, []), "2: input_length must be an integer from 1 to 16777216, got 'xxx"),
    (mooncake([[[[[0] * 99] * 9] * 9] * 9] * 9, []), "2: input_length must be an integer from 1 to 16777216, got [[["),
    (
        mooncake(5, [], timestamp=10**400),
        "2: timestamp must be a number from 0 to 9007199254740992, got an integer of 1329 bits",
    ),
    (
        mooncake(5, [], timestamp=2**53 + 1),
        "2: timestamp must be a number from 0 to 9007199254740992, got 9007199254740993",
    ),
    (mooncake(5, [], timestamp="1"), "2: timestamp must be a number from 0 to 9007199254740992, got '1'"),
    (mooncake(600, [2**64]), "2: hash_ids must be integers from 0 to 2**64 - 1, got 18446744073709551616 in it"),
    (mooncake(600, [-1]), "2: hash_ids must be integers from 0 to 2**64 - 1, got -1 in it"),
    (mooncake(600, [True]), "2: hash_ids must be integers from 0 to 2**64 - 1, got True in it"),
    (mooncake(600, [1e18]), "2: hash_ids must be integers from 0 to 2**64 - 1, got 1e+18 in it"),
]


@pytest.mark.parametrize("row, message", BROKEN)
def test_a_broken_line_of_mooncakes_format_is_named(tmp_path, row, message):
    path = write(tmp_path / "trace.jsonl", [mooncake(5, []), row])
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}:{message}")
    assert len(str(error.value)) < len(str(path)) + 400 and str(error.value).isprintable()


BROKEN_SESSIONS = [
    (session([turn(130, [[1, 1]])]), "2, request 1: 130 tokens have 2 full blocks of 64, got 1 in h"),
    (session([turn(64, [[1, 1]]), turn(64, [[1]])]), "2, request 2: h must be a list of [first, count], got [1] in it"),
    (session([turn(64, [[1, 0]])]), "2, request 1: h must have counts of at least 1 and ids from 0 to"),
    (
        session([turn(64, [[1, 1]], think="?")]),
        "2, request 1: think_time must be a number from 0 to 9007199254740992, got '?'",
    ),
    (session([nested([turn(-1, [])])]), "2, request 1, request 1: in must be an integer from 1 to 16777216, got -1"),
    (session([3]), "2, request 1: expected a JSON object, got 3"),
    (session([], block_size=32), "2: block_size must be 64 as in the lines before, got 32"),
    ({**session([]), "hash_id_scope": "global"}, "2: hash_id_scope must be 'local', got 'global'"),
    ({**session([]), "requests": None}, "2: requests must be a list, got None"),
]


def deep(levels: int) -> dict:
    return session([nested([turn(64, [[1, 1]])])]) if levels == 2 else session([_nest(levels - 2)])


def _nest(levels: int) -> dict:
    inner = [turn(64, [[1, 1]])]
    for _ in range(levels + 1):
        inner = [nested(inner)]
    return inner[0]


BROKEN_SESSIONS += [
    (
        session([turn(10**18, [[0, 1]])]),
        "2, request 1: in must be an integer from 1 to 16777216, got 1000000000000000000",
    ),
    (session([turn(64 << 32, [[0, (1 << 32) - 1]])]), "2, request 1: in must be an integer from 1 to 16777216, got"),
    (session([turn(64, [[0, 10**18]])]), "2, request 1: h must have counts of at least 1 and ids from 0 to"),
    (session([turn(64, [[-1, 1]])]), "2, request 1: h must have counts of at least 1 and ids from 0 to"),
    (session([turn(64, [[True, 1]])]), "2, request 1: h must be a list of [first, count], got [True, 1] in it"),
    (session([turn(64, [[[[[[0]]]], 1]])]), "2, request 1: h must be a list of [first, count], got [[["),
    (
        session([turn(64, [[1, 1]], api=-1)]),
        "2, request 1: api_time must be a number from 0 to 9007199254740992, got -1",
    ),
    (session([turn(64, [[1, 1]], think=10**400)]), "2, request 1: think_time must be a number from 0 to 90"),
    (session([turn(64, [[1, 1]], t=2e16)]), "2, request 1: t must be a number from 0 to 90"),
    (session([], tool=10**18), "2: tool_tokens must be an integer from 0 to 16777216, got 1000000000000000000"),
    (session([], block_size=10**18), "2: block_size must be an integer from 1 to 16777216, got 1000000000000000000"),
    ({**session([]), "hash_id_scope": ["x" * 999] * 999}, "2: hash_id_scope must be 'local', got ['xxx"),
    (deep(17), "2" + ", request 1" * 16 + ": conversations must not be nested more than 16 deep"),
    (deep(200), "2" + ", request 1" * 16 + ": conversations must not be nested more than 16 deep"),
]


def test_conversations_nest_up_to_the_limit(tmp_path):
    (conversation,) = read_trace(write(tmp_path / "t", [deep(16)])).conversations
    assert [t.prompt.num_tokens for t in conversation] == [64]


def test_a_prompt_names_a_bounded_number_of_blocks(tmp_path):
    largest = session([turn(1 << 20, [[0, 1 << 20]])], block_size=1)
    (conversation,) = read_trace(write(tmp_path / "largest", [largest])).conversations
    assert conversation.turns[0].prompt.num_tokens == 1 << 20
    larger = session([turn((1 << 20) + 1, [[0, (1 << 20) + 1]])], block_size=1)
    with pytest.raises(
        TraceError, match=r":1, request 1: 1048577 tokens have 1048577 full blocks of 1, expected at most"
    ):
        read_trace(write(tmp_path / "larger", [larger]))


@pytest.mark.parametrize("row, message", BROKEN_SESSIONS)
def test_a_broken_line_of_the_session_format_is_named(tmp_path, row, message):
    path = write(tmp_path / "trace.jsonl", [session([turn(64, [[1, 1]])]), row])
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}:{message}")
    assert len(str(error.value)) < len(str(path)) + 400 and str(error.value).isprintable()


def test_files_that_hold_no_trace(tmp_path):
    with pytest.raises(TraceError, match="holds no requests"):
        read_trace(write(tmp_path / "empty", []))
    with pytest.raises(TraceError, match=r"fields:1: neither Mooncake's .* the fields are \['a', 'b'\]"):
        read_trace(write(tmp_path / "fields", [{"a": 1, "b": 2}]))
    with pytest.raises(TraceError, match="absent: No such file"):
        read_trace(tmp_path / "absent")
    with pytest.raises(TraceError, match="states its block size"):
        read_trace(write(tmp_path / "s", [session([turn(64, [[1, 1]])])]), block_size=64)
    cut = write(tmp_path / "cut", [mooncake(5, [], timestamp=i) for i in range(99)], packed=True)
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(TraceError, match="cut"):
        read_trace(cut)


def test_a_trace_is_read_line_by_line(tmp_path):
    """An error late in a file does not depend on what comes after it."""
    path = write(tmp_path / "t", [json.dumps(mooncake(5, [])), "\x00"])
    with pytest.raises(TraceError, match=":2: not JSON"):
        read_trace(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_is_read_no_further_than_its_limit(tmp_path, packed):
    """The file goes on for 400 MB, as a hole or packed to 400 kB."""
    path = tmp_path / "t"
    first = json.dumps(mooncake(5, [])).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as file:
        file.write(first + b'{"')
        for _ in range(4 if packed else 0):
            file.write(bytes(MAX_LINE_BYTES))
    if not packed:
        os.truncate(path, 400_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=f":2: the line is longer than the limit of {MAX_LINE_BYTES} bytes"):
            read_trace(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_line_may_be_as_long_as_the_limit(tmp_path):
    row = json.dumps(mooncake(5, [])).encode()
    longest = row + b" " * (MAX_LINE_BYTES - len(row) - 1)
    assert len(read_trace(write(tmp_path / "t", [longest, row])).arrivals) == 2
    with pytest.raises(TraceError, match=":1: the line is longer"):
        read_trace(write(tmp_path / "t", [longest + b" ", row]))


def test_a_broken_gzip_file_is_named_with_the_line_that_could_not_be_read(tmp_path):
    rows = [mooncake(5, [], timestamp=i) for i in range(2000)]
    path = write(tmp_path / "t", rows, packed=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4] + b"abcd", whole[:500] + bytes(50) + whole[550:], whole[:5]):
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match=rf"^{path}:\d+: ") as error:
            read_trace(path)
        assert str(error.value).isprintable()


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_is_read_once(tmp_path, packed):
    source = write(tmp_path / "t", [mooncake(5, []), mooncake(600, [1])], packed)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(source.read_bytes()), daemon=True)
    writer.start()
    assert len(read_trace(tmp_path / "pipe").arrivals) == 2
    writer.join(10)
