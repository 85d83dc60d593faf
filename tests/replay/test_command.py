"""The command from end to end, on small traces."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from traces_by_hand import growing, mooncake, session, write

from swa_attn.__main__ import main
from swa_attn.replay.sizes import parse_bytes, show_bytes, show_count
from swa_attn.runner.presets import PRESETS


@pytest.fixture
def sessions(tmp_path):
    rows = [session(growing(6, 4), tool=64, system=70), session(growing(4, 20), tool=64, system=70)]
    return write(tmp_path / "sessions.jsonl.gz", rows, packed=True)


@pytest.fixture
def chats(tmp_path):
    rows = [mooncake(512 * n + 100, [*range(n), 1000 + n], timestamp=n) for n in (1, 2, 3, 2, 4, 5, 1, 6)]
    return write(tmp_path / "chats.jsonl", rows)


def replay(capsys, *args) -> tuple[int, str, str]:
    code = main(["replay", *map(str, args)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("trace", ["sessions", "chats"])
def test_text_json_and_plot(trace, request, tmp_path, capsys):
    path = request.getfixturevalue(trace)
    numbers, picture = tmp_path / "out.json", tmp_path / "out.svg"
    code, out, err = replay(capsys, path, "--users", 2, "--json", numbers, "--plot", picture, "--capacity-at", "0.2")
    assert (code, err) == (0, "")
    figures = json.loads(numbers.read_text())
    aware, oblivious = figures["caches"]["aware"], figures["caches"]["oblivious"]
    assert figures["trace"]["requests"] == (10 if trace == "sessions" else 8)
    assert figures["trace"]["outputs_replayed"] is False and "Answers are not replayed" in out
    assert 0.2 < aware["hit_rate"] <= figures["infinite_cache_hit_rate"]
    assert oblivious["hit_rate"] == pytest.approx(figures["infinite_cache_hit_rate"], abs=0.03)  # but for whole pages
    assert f"{aware['hit_rate']:.4f}" in out and f"x {figures['structural']['total']['ratio']:.2f}" in out
    assert 1 < figures["structural"]["total"]["ratio"] < figures["structural"]["limit"] == 7.0
    capacity = figures["capacity"][0]
    assert capacity["ratio"] == pytest.approx(capacity["oblivious_bytes"] / capacity["aware_bytes"])
    cost = figures["bill"]["per_million_input_tokens"]
    assert cost["uncached"] == 0.435
    rate = aware["hit_rate"]
    assert cost["aware"] == pytest.approx(0.0036 * rate + 0.435 * (1 - rate), rel=1e-3)

    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {f"{aware['hit_rate']:.4f}", "window-oblivious"} <= words
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x")) + float(box.get("width")) <= float(root.get("width"))


def test_one_tier_and_the_policy_options(sessions, tmp_path, capsys):
    numbers, picture = tmp_path / "out.json", tmp_path / "out.svg"
    options = "--host 0 --disk 0 --slack 0 --no-rebuild --no-branches --every 512 --no-demote --page-size 128 --limit 7"
    code, out, _ = replay(
        capsys, sessions, *options.split(), "--fp8-lower", "--planner", "time", "--json", numbers, "--plot", picture
    )
    assert code == 0 and "not searched" in out
    figures = json.loads(numbers.read_text())
    assert figures["budgets"] == {"device": 300 * 10**9}
    assert figures["trace"]["requests"] == 7 and figures["trace"]["page_size"] == 128
    assert figures["options"] == {
        "slack": 0,
        "rebuild": False,
        "branches": False,
        "every": 512,
        "demote": False,
        "fp8_lower": True,
        "planner": "time",
    }
    assert figures["caches"]["aware"]["rebuilds"] == 0
    assert figures["structural"]["limit"] == pytest.approx(14.0, rel=0.01)
    ElementTree.parse(picture)


def test_a_model_given_by_its_config(sessions, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**PRESETS["mimo-v2.5-pro"], "num_key_value_heads": 4, "swa_num_key_value_heads": 8}))
    numbers = tmp_path / "out.json"
    assert replay(capsys, sessions, "--model", config, "--json", numbers)[0] == 0
    assert json.loads(numbers.read_text())["structural"]["limit"] == 13.0


@pytest.mark.parametrize(
    "args, message",
    [
        (["--model", "nonesuch"], "--model: expected a config.json or one of mimo-v2-flash"),
        (["--host", "0"], "--host: a disk tier needs a host tier above it"),
        (["--device", "0"], "--device: the device tier cannot be left out"),
        (["--page-size", "100"], "page_size must divide the trace's block size 64"),
        (["--json", "nowhere/out.json"], "nowhere/out.json: there is no folder 'nowhere' to write to"),
        (["--block-size", "32"], "the file states its block size"),
        (["--device", "0.4"], "--device: the device tier cannot be left out"),
        (["--json", "/"], "/: expected a file to write to, got a folder"),
        (["--plot", "/"], "/: expected a file to write to, got a folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(sessions, capsys, args, message):
    code, out, err = replay(capsys, sessions, *args)
    assert (code, out) == (2, "")
    assert err.startswith("swa_attn replay: ") and message in err and err.count("\n") == 1


COUNTS = ("--users", "--block-size", "--page-size", "--limit", "--slack", "--every")
NO_COUNTS = ("-1", "nan", "inf", "1.5", "1e3", "", "0x10", "1_0", str(1 << 31), "9" * 10_000)
NO_AMOUNTS = ("lots", "-1", "nan", "inf", "1e9", "", "2EB", "1152921504606848000", "1000000PB", "9" * 400 + "PB")
NO_RATES = ("1.5", "0", "1", "-0.5", "nan", "inf", "1e400", "", "x")


@pytest.mark.parametrize(
    "option, value",
    [
        *((option, value) for option in COUNTS for value in NO_COUNTS),
        *((option, "0") for option in COUNTS if option != "--slack"),
        *((option, value) for option in ("--device", "--host", "--disk") for value in NO_AMOUNTS),
        *(("--capacity-at", value) for value in NO_RATES),
        ("--prices", "none"),
        ("--dtype", "float64"),
        ("--planner", "none"),
    ],
)
def test_bad_options_are_refused(sessions, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(["replay", str(sessions), f"{option}={value}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and f"argument {option}: " in last and len(last) < 300
    assert "expected" in last or "invalid choice" in last


@pytest.mark.parametrize("option", ["--users", "--limit", "--slack", "--every", "--device", "--host", "--disk"])
def test_the_largest_options_end(sessions, capsys, option):
    value = 1 << 60 if option in ("--device", "--host", "--disk") else (1 << 31) - 1
    assert replay(capsys, sessions, option, value)[0] == 0


def test_the_smallest_options_end(sessions, capsys):
    smallest = "--users 1 --limit 1 --slack 0 --every 1 --device 1 --host 1 --disk 1 --page-size 1 --capacity-at 1e-300"
    code, out, err = replay(capsys, sessions, *smallest.split())
    assert (code, err) == (0, "") and "1 requests" in out


LINES = {
    "{": "not JSON",
    '{"a": NaN}': "not JSON: NaN is no number",
    "[" * 100_000: "its lists and objects are nested too deep",
    b"\xff": "not UTF-8",
    b"\0": "not JSON",
    b"x" * (16 << 20) + b"x": "the line is longer than the limit of 16777216 bytes",
    json.dumps(mooncake(10**18, [])): "input_length must be an integer",
    json.dumps(mooncake(5, [], timestamp=10**300)): "timestamp must be a number",
    json.dumps(mooncake(600, [10**18 * 100])): "hash_ids must be integers",
    json.dumps(mooncake(600, ["\ud800\x1b[31m"])): "hash_ids must be integers",
    json.dumps(session([])): "timestamp is missing",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_broken_line_ends_the_command_with_its_place(tmp_path, capsys, line, packed):
    path = write(tmp_path / "t.jsonl", [mooncake(5, []), line], packed)
    code, out, err = replay(capsys, path)
    assert (code, out) == (2, "") and err.startswith(f"swa_attn replay: {path}:2: {LINES[line]}")
    assert err.count("\n") == 1 and err[:-1].isprintable()


def test_the_first_line_may_be_broken_as_well(tmp_path, capsys):
    path = write(tmp_path / "t.jsonl", [{"\ud800\n" + "x" * 10**6: 0}])
    code, _, err = replay(capsys, path)
    assert code == 2 and f"{path}:1: neither Mooncake's" in err and err.count("\n") == 1 and len(err) < 1000


@pytest.mark.slow
def test_a_command_ends_with_a_line_and_no_traceback(tmp_path):
    path = write(tmp_path / "t.jsonl.gz", [mooncake(5, [])] * 500, packed=True)
    path.write_bytes(path.read_bytes()[:-20])
    command = [sys.executable, "-m", "swa_attn", "replay", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"swa_attn replay: {path}:") and done.stderr.count("\n") == 1


def test_a_file_name_that_is_no_unicode_is_shown(tmp_path, capsys):
    path = write(tmp_path / os.fsdecode(b"t\xff.jsonl"), [mooncake(5, [])] * 5)
    numbers = tmp_path / "out.json"
    assert replay(capsys, path, "--json", numbers)[0] == 0
    assert json.loads(numbers.read_text())["trace"]["path"].endswith("t?.jsonl")


def test_an_interrupt_is_no_traceback(sessions, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("swa_attn.replay.command.infinite_cache", stop)
    code, _, err = replay(capsys, sessions)
    assert code == 130 and "interrupted" in err


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_on_standard_error(sessions, capsys, monkeypatch, terminal):
    monkeypatch.setattr("swa_attn.replay.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("swa_attn.replay.progress.SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    _, out, err = replay(capsys, sessions)
    assert "window-aware: 3 of 10 requests" in err and "of 10 requests" not in out
    assert err.endswith("\r\033[K" if terminal else " per minute\n") and ("\033" in err) == terminal
    assert replay(capsys, sessions, "--quiet")[2] == ""


@pytest.mark.parametrize(
    "text, amount",
    [("300GB", 300 * 10**9), ("1.5TiB", 3 << 39), ("4096", 4096), ("2 kb", 2000), ("0", 0), ("1g", 10**9)],
)
def test_amounts_are_read(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1XB", "1,5GB", "1e9"])
def test_other_amounts_are_not(text):
    with pytest.raises(ValueError, match="expected an amount of bytes"):
        parse_bytes(text)


def test_amounts_are_shown_with_three_digits():
    assert [show_bytes(n) for n in (0, 999, 1000, 51_200, 300e9, 999.6e9)] == [
        "0 B", "999 B", "1.00 kB", "51.2 kB", "300 GB", "1.00 TB",
    ]  # fmt: skip
    assert show_count(2_040_000_000) == "2.04 G" and show_count(12) == "12"
