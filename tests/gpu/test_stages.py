"""`make gpu` itself: stages are isolated and limited in time, results are written as they come."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import __main__ as command
from bench.gpu import machine, stages
from bench.gpu.bench import Row
from bench.gpu.ceilings import Measured
from bench.gpu.libraries import ROOT, arch_of
from bench.gpu.processes import run_logged
from bench.gpu.stages import Context, StageResult

NO_GPU = machine.Machine(None, None, None, None, None, {}, "2.13", None, "3.9", "3.11", "x86_64")
CARD = replace(NO_GPU, card="NVIDIA H200", arch="90a", num_sms=132, l2_bytes=60 << 20, smem_bytes=228 << 10)
MEASURED = Measured(
    device_copy=4.0e12,
    device_read=4.3e12,
    gemm_bf16=790e12,
    exps=132 * 16 * 1.7e9,
    host_read_by_sm=35e9,
    host_read_ctas=32,
    host_to_device_by_copy_engine=50e9,
    device_to_host_by_copy_engine=50e9,
    empty_kernel_seconds=1.35e-6,
)


def python(tmp_path, code, seconds=30):
    return run_logged([sys.executable, "-c", code], tmp_path / "log", seconds, ROOT, {"SPOKEN": "by the stage"})


def test_output_and_status_of_a_process(tmp_path):
    fine = python(tmp_path, "import os; print('first'); print(os.environ['SPOKEN'])")
    assert fine.passed and fine.last_line == "by the stage"
    failed = python(tmp_path, "import sys; sys.exit(3)")
    assert not failed.passed and failed.why == "exit status 3" and failed.last_line == "no output"
    crashed = python(tmp_path, "import os; os.abort()")
    assert crashed.why == "killed by signal 6"


def test_a_process_that_hangs_is_ended_with_what_it_started(tmp_path):
    alive = tmp_path / "alive"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).write_text(str(time.time())); time.sleep(.05)"
    )
    code = f"import subprocess, sys\nprint('started', flush=True)\nsubprocess.run([sys.executable, '-c', {child!r}])"
    outcome = python(tmp_path, code, 3)
    assert outcome.code is None and outcome.why == "stopped after 3 s" and outcome.last_line == "started"
    assert alive.exists()
    time.sleep(0.3)
    last = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == last


def test_stages_do_not_take_each_other_down(tmp_path, monkeypatch, capsys):
    seen = []

    def broken(context):
        seen.append(json.loads((tmp_path / "gpu_no_gpu_date.json").read_text()))
        raise ZeroDivisionError("a mistake in a stage")

    monkeypatch.setattr(command, "result_name", lambda machine, date: f"gpu_{machine.slug}_date")
    row = Row("P1", "cuda", 87.8, "hbm", us=100.0, tflops=426.0, gbs=3770.0, floor_share=0.878, relative_error=4e-3)
    lacking = Row("P1", "fa4", 87.8, "hbm", problem="cannot: flash_attn is not importable")
    rows = {"rows": [vars(row), vars(lacking)], "ceilings": MEASURED.as_json()}
    found = rows | stages.assessed(CARD, rows)
    monkeypatch.setattr(
        command,
        "STAGES",
        {
            "build": lambda context: StageResult("ok", "built", {"nvcc": None}),
            "conformance": broken,
            "bench": lambda context: StageResult("ok", "1 row", found),
        },
    )
    code = command.run_all(["build", "conformance", "bench"], Context(NO_GPU, tmp_path), tmp_path)
    assert code == 1 and seen[0]["stages"]["build"]["summary"] == "built"
    record = json.loads((tmp_path / "gpu_no_gpu_date.json").read_text())
    assert record["stages"]["conformance"]["status"] == "failed"
    assert "a mistake in a stage" in (tmp_path / "conformance_error.log").read_text()
    assert record["stages"]["bench"]["rows"][0]["us"] == 100.0 and record["machine"]["card"] is None
    text = (tmp_path / "gpu_no_gpu_date.txt").read_text()
    assert "100.00" in text and "not run  fa4: cannot: flash_attn is not importable" in text
    order = ["not run  fa4", "sm90_swa_prefill", "time / floor", "1 met, 0 missed, 14 not measured", "build        ok"]
    assert sorted(order, key=text.index) == order
    (predicted,) = record["stages"]["bench"]["predicted"]
    assert predicted["case"] == "P1" and predicted["overlapped_error"] == pytest.approx(
        100 / predicted["overlapped_us"]
    )
    assert [t["status"] for t in record["stages"]["bench"]["targets"][:2]] == ["met", "not measured"]
    assert text.splitlines()[0].startswith("There is no GPU here")
    assert "conformance  failed" in capsys.readouterr().out

    monkeypatch.setattr(command, "STAGES", {"suite": lambda context: StageResult("ok", "7 passed")})
    assert command.run_all(["suite"], Context(NO_GPU, tmp_path), tmp_path) == 0
    stages_then = json.loads((tmp_path / "gpu_no_gpu_date.json").read_text())["stages"]
    assert list(stages_then) == ["build", "conformance", "bench", "suite"]  # of the same machine and day
    other = replace(NO_GPU, torch="2.14")
    assert command.run_all(["suite"], Context(other, tmp_path), tmp_path) == 0
    assert list(json.loads((tmp_path / "gpu_no_gpu_date.json").read_text())["stages"]) == ["suite"]


def test_without_a_card_stages_that_need_one_say_so(tmp_path):
    for stage in (stages.sanitizer, stages.benchmark):
        result = stage(Context(NO_GPU, tmp_path))
        assert (result.status, result.summary) == ("skipped", "there is no GPU")


def test_what_the_stages_start_on_a_card(tmp_path, monkeypatch):
    """The commands, with a process runner that only records, and results left by an earlier run in the folder."""
    started = []

    def record(run, log, seconds, cwd, variables=None):
        started.append((" ".join(map(str, run)), variables))
        log.write_text("7 passed\n")
        return stages.Outcome(0, log, seconds)

    monkeypatch.setattr(stages, "run_logged", record)
    monkeypatch.setattr(stages, "OUTPUT", tmp_path)
    monkeypatch.setattr(stages.shutil, "which", lambda name: f"/bin/{name}")
    for name in ("conformance", "ceilings"):
        (tmp_path / f"lib{name}_90a.so").touch()
    (tmp_path / "bench.json").write_text('{"rows": [{"us": 1.0}]}')
    context = Context(CARD, tmp_path, "P1,D2", peers=False)
    assert stages.conformance(context).summary.startswith("0 probes")
    assert f"--library {tmp_path / 'libconformance_90a.so'}" in started[-1][0]
    assert stages.suite(context).summary == "7 passed"
    assert "tests/ops tests/gpu" in started[-1][0]
    assert started[-1][1] == {"SWA_ATTN_TEST_BACKENDS": "cuda,triton"}
    assert stages.sanitizer(context).summary == "4 of 4 clean"
    assert {"memcheck cuda", "racecheck cuda", "synccheck cuda", "memcheck triton"} == {
        f"{run.split('--tool ')[1].split()[0]} {run.split()[-1]}" for run, _ in started[-4:]
    }
    result = stages.benchmark(context)
    assert result.summary.startswith("0 of 0 rows have a time")  # not those of the earlier run
    assert not result.detail["predicted"] and {t["status"] for t in result.detail["targets"]} == {"not measured"}
    assert "--cases P1,D2" in started[-1][0] and "--no-peers" in started[-1][0]


def test_a_case_that_takes_the_benchmark_down_is_tried_without_peers_then_left_out(tmp_path, monkeypatch):
    """P1 runs, a peer kills P2, our own backend kills P3."""
    attempts = []

    def crash(run, log, seconds, cwd, variables=None):
        cases, peers = run[run.index("--cases") + 1].split(","), "--no-peers" not in run
        attempts.append((cases, peers))
        rows, running = [], ""
        for case in cases:
            if (case == "P2" and peers) or case == "P3":
                running = case
                break
            rows.append(vars(Row(case, "cuda", 80.0, "hbm", us=100.0)))
        written = {"ceilings": MEASURED.as_json(), "running": running, "rows": rows}
        Path(run[run.index("--json") + 1]).write_text(json.dumps(written))
        log.write_text("")
        return stages.Outcome(-11 if running else 0, log, seconds)

    monkeypatch.setattr(stages, "run_logged", crash)
    monkeypatch.setattr(stages, "OUTPUT", tmp_path)
    (tmp_path / "libceilings_90a.so").touch()
    result = stages.benchmark(Context(CARD, tmp_path, "P1,P2,P3,P4"))
    assert attempts == [(["P1", "P2", "P3", "P4"], True), (["P2", "P3", "P4"], False), (["P4"], False)]
    assert [row["case"] for row in result.detail["rows"]] == ["P1", "P2", "P4"]
    assert [p["case"] for p in result.detail["predicted"]] == ["P1", "P2", "P4"]
    verdicts = {(t["case"], t["target"]): t["status"] for t in result.detail["targets"]}
    assert verdicts["P1", "time / floor"] == "met" and verdicts["P5", "time / floor"] == "not measured"
    assert result.status == "failed" and result.detail["lost"] == ["P3"] and "no rows for P3" in result.summary


def test_the_command_line(capsys):
    with pytest.raises(SystemExit):
        command.main(["--stages", "nonsense"])
    assert "no stage is called 'nonsense'; there are: build, conformance" in capsys.readouterr().err
    assert command.main(["--ncu", "P1"]) == 0
    recipe = capsys.readouterr().out
    assert "--nvtx-include 'P1/'" in recipe and "bench.gpu.bench --once cuda --cases P1" in recipe


def test_names(tmp_path):
    assert CARD.slug == "nvidia_h200" and NO_GPU.slug == "no_gpu"
    assert arch_of((9, 0)) == "90a" and arch_of((8, 0)) == "80" and arch_of((12, 0)) == "120"
    assert "132 SMs, 60 MiB L2" in CARD.lines()[0]
    found = [replace(CARD, arch=arch).compute_capability for arch in ("90a", "80", "120a", None)]
    assert found == [90, 80, 120, None]


def test_make_gpu_calls_the_command():
    makefile = Path(ROOT / "Makefile").read_text()
    assert "-m bench.gpu $(GPU_ARGS)" in makefile
