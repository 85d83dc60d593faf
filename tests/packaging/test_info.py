"""`python -m swa_attn`: what it says must be what is."""

import json
import os
import subprocess
import sys

import pytest

import swa_attn
from swa_attn import __main__, backends, info, native


def run(*arguments, **environment):
    command = [sys.executable, "-m", "swa_attn", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_info_agrees_with_what_runs(capsys):
    assert __main__.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["swa_attn"] == swa_attn.__version__
    expected = "reference" if native.unavailable() else "cpu"
    assert {op["runs"] for op in facts["backends"]["cpu"].values()} == {expected}
    assert set(facts["backends"]["cpu"]) == {"append_kv", "prefill", "decode", "merge_states", "copy_pages"}


def test_info_text_names_backends_and_reasons(capsys):
    assert __main__.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "who runs what" in text and "cuda  decode" in text
    for name, reason in info.explain("decode", "cuda")["not"].items():
        assert f"not {name}: {reason}" in text


def test_without_the_library_the_reference_runs_and_info_says_why():
    result = run("info", "--json", SWA_ATTN_NO_NATIVE="1")
    facts = json.loads(result.stdout)
    assert facts["library"] == "disabled by SWA_ATTN_NO_NATIVE"
    assert facts["backends"]["cpu"]["decode"] == {"runs": "reference", "not": {"cpu": "disabled by SWA_ATTN_NO_NATIVE"}}


def test_a_forced_backend_shows():
    facts = json.loads(run("info", "--json", SWA_ATTN_BACKEND="reference").stdout)
    assert facts["backends"]["cpu"]["decode"] == {"runs": "reference", "not": {}}
    assert facts["environment"]["SWA_ATTN_BACKEND"] == "reference"


@pytest.mark.parametrize("command", ["info", "demo", "replay"])
@pytest.mark.parametrize("name", ["foo", "two\nlines", "CPU"])
def test_an_unknown_backend_is_one_line(monkeypatch, capsys, command, name):
    monkeypatch.setenv("SWA_ATTN_BACKEND", name)
    assert __main__.main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"SWA_ATTN_BACKEND: backend must be one of {', '.join(backends.NAMES)}")
    assert err.endswith(f", got {name!r}\n") and err.count("\n") == 1


def test_an_unknown_backend_ends_the_process_without_a_traceback():
    result = run("info", SWA_ATTN_BACKEND="foo")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("SWA_ATTN_BACKEND: backend must be one of") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments, code", [([], 0), (["--help"], 0), (["nonsense"], 2)])
def test_help(arguments, code, capsys):
    assert __main__.main(arguments) == code
    out, err = capsys.readouterr()
    assert "info" in out and "demo" in out
    assert ("unknown command 'nonsense'" in err) == (code == 2)


def test_native_kernels_take_their_own_device():
    case = backends.Case("decode", "cpu", "cuda", None)
    assert native.lacks(case) == "its kernels take cpu tensors, got cuda"


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "main", interrupted)
    assert __main__.main(["info"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
