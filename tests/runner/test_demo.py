"""The demo as a user runs it, on a small session: what it prints must be what happened."""

import json
from decimal import Decimal

import pytest

from swa_attn.kvcache import Planner
from swa_attn.runner import demo
from swa_attn.runner.demo import DEFAULT_MODEL

pytestmark = pytest.mark.skipif(
    not (DEFAULT_MODEL / "model.safetensors").exists(), reason="examples/tiny_hybrid/model.safetensors is not there"
)
SMALL = ["--users", "4", "--turns", "2", "--max-tokens", "6", "--context-bytes", "1500"]


@pytest.fixture
def repo(tmp_path):
    lines = "".join(f"    x{i} = {i}\n" for i in range(8))
    for name in "abcd":
        (tmp_path / f"{name}.py").write_text(f"def {name}(x):\n{lines}    return x\n")
    return tmp_path


def test_json(repo, capsys, monkeypatch):
    # Whatever is cached is used: on a busy machine computing may be predicted to be faster than reading files.
    monkeypatch.setattr(Planner, "choose", lambda _, options: min(options, key=lambda o: (-o.resume, o.seconds)))
    assert demo.main(["--json", "--repo", str(repo), *SMALL]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["outputs_equal"] and len(result["requests"]) == 8
    hits = [r["prompt_cache_hit_tokens"] for r in result["requests"]]
    assert [hit > 0 for hit in hits] == [False, True, False, True, True, True, True, True], "one cold start per team"
    tiers = {t for r in result["requests"] for t in r["prompt_tokens_details"].get("cached_tokens_details", {})}
    assert tiers == {"device", "host", "disk"}
    assert {(m["from"], m["to"]) for m in result["moved_bytes"]} == {
        ("device", "host"), ("host", "device"), ("host", "disk"), ("disk", "host")
    }  # fmt: skip
    for r in result["requests"]:
        assert r["prompt_cache_hit_tokens"] + r["prompt_cache_miss_tokens"] == r["prompt_tokens"]
        details = r["prompt_tokens_details"]
        assert details["cached_tokens"] == r["prompt_cache_hit_tokens"]
        assert sum(details.get("cached_tokens_details", {}).values()) == details["cached_tokens"]
        assert 1 <= r["completion_tokens"] <= 6
    pools = result["pools"]
    assert pools["full"]["peak_pages"] == pools["full"]["peak_pages_window_oblivious"]
    assert pools["swa"]["peak_pages"] < pools["swa"]["peak_pages_window_oblivious"]
    usage = result["usage"]
    pro = next(b for b in result["bills"] if b["prices_of"] == "MiMo-V2.5-Pro")
    expected = (
        usage["prompt_cache_hit_tokens"] * Decimal("0.0036")
        + usage["prompt_cache_miss_tokens"] * Decimal("0.435")
        + usage["completion_tokens"] * Decimal("0.87")
    ) / 1_000_000
    assert Decimal(pro["with_cache"]) == expected and Decimal(pro["without_cache"]) > expected


def test_text(repo, capsys):
    assert demo.main(["--repo", str(repo), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "All 8 completions with the cache equal those without it, token by token." in text
    assert "user-2    turn 2" in text and "MiMo-V2.5-Pro" in text and "window-oblivious" in text


def test_a_difference_is_reported_and_fails(repo, capsys, monkeypatch):
    """The comparison can fail: with the cache off in one run and other seeds in the other, the tokens differ."""
    run = demo.run_session

    def changed(engine, workload, max_tokens, say, *, show):
        if not show:
            monkeypatch.setattr(demo, "SAMPLING", {"temperature": 5.0})
        return run(engine, workload, max_tokens, say, show=show)

    monkeypatch.setattr(demo, "run_session", changed)
    assert demo.main(["--repo", str(repo), *SMALL]) == 1
    assert "MISMATCH: completions with the cache differ from those without it: user-1 turn 1" in capsys.readouterr().out


def test_bad_arguments(repo, tmp_path, capsys):
    assert demo.main(["--repo", str(tmp_path / "nothing")]) == 2
    assert "--repo must be a source tree with Python files" in capsys.readouterr().err
    assert demo.main(["--repo", str(repo), "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--users", "0"])
