"""Every kernel compiled ahead of time for sm_80, sm_90 and sm_100: no spills, shared memory within the limit, and the
instructions that must be there. Compiling needs no GPU; it runs in a process without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "triton_resources.py"
TENSOR_CORE = {80: ("HMMA",), 90: ("HMMA", "HGMMA"), 100: ("HMMA", "UTCHMMA")}
WIDE_DOT = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}  # what 64 rows and more must use
ATTENTION = ("swa_prefill", "swa_decode", "swa_decode_split")


def compile_all(tmp_path, *options):
    """The rows of `bench/triton_resources.py`; prints its table, so that a failing run (or `-s`) shows registers."""
    if sys.platform != "linux":
        pytest.skip("Triton ships its tools for Linux")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = tmp_path / "resources.json"
    command = [sys.executable, str(SCRIPT), "--json", str(found), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


def check(rows):
    assert rows
    wrong = []
    for row in rows:
        name, counts, arch = f"{row['kernel']} sm_{row['arch']} ({row['build']})", row["instructions"], row["arch"]
        if row["stack"] or counts["STL"] or counts["LDL"]:
            wrong.append(f"{name} spills: {row['stack']} bytes of stack, {counts['STL']} STL, {counts['LDL']} LDL")
        if row["shared"] > row["shared_limit"]:
            wrong.append(f"{name} wants {row['shared']} bytes of shared memory, {row['shared_limit']} exist")
        if row["kernel"] in ATTENTION and "float32" not in row["build"]:
            if not any(counts[i] for i in TENSOR_CORE[arch]):
                wrong.append(f"{name} uses no tensor cores")
            if row["kernel"] == "swa_prefill" and "fp8" not in row["build"] and not counts[WIDE_DOT[arch]]:
                wrong.append(f"{name} has no {WIDE_DOT[arch]}")
            if not counts["LDGSTS"]:
                wrong.append(f"{name} does not pipeline its loads")
    assert not wrong, "\n".join(wrong)


def test_the_head_dim_table(tmp_path):
    rows = compile_all(tmp_path, "--fast")
    check(rows)
    assert {row["arch"] for row in rows} == {80, 90, 100}
    assert {row["kernel"] for row in rows} >= {"swa_prefill", "swa_decode", "swa_append_kv", "swa_copy_pages"}


@pytest.mark.slow
def test_every_variant(tmp_path):
    rows = compile_all(tmp_path, "--jobs", "2")
    check(rows)
    assert {row["kernel"] for row in rows} == {
        "swa_prefill",
        "swa_decode",
        "swa_decode_split",
        "swa_decode_combine",
        "swa_append_kv",
        "swa_copy_pages",
        "swa_copy_pages_to_fp8",
        "swa_merge_states",
    }


def test_the_check_sees_what_it_must():
    good = {
        "build": "prefill",
        "kernel": "swa_prefill",
        "arch": 90,
        "stack": 0,
        "shared": 1000,
        "shared_limit": 2000,
        "instructions": {"HMMA": 0, "HGMMA": 8, "UTCHMMA": 0, "LDGSTS": 8, "LDL": 0, "STL": 0},
    }
    check([good])
    for change, message in (
        ({"stack": 8}, "spills"),
        ({"shared": 3000}, "shared memory"),
        ({"instructions": {**good["instructions"], "HGMMA": 0}}, "no tensor cores"),
        ({"instructions": {**good["instructions"], "HGMMA": 0, "HMMA": 8}}, "no HGMMA"),
        ({"instructions": {**good["instructions"], "LDGSTS": 0}}, "does not pipeline"),
    ):
        with pytest.raises(AssertionError, match=message):
            check([good | change])
