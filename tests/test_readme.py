"""The README's Python runs as it stands, and its results are what it says."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_there_are_two_snippets():
    assert len(SNIPPETS) == 2


def test_ops_snippet():
    names: dict = {}
    torch.manual_seed(0)
    with torch.no_grad():
        exec(SNIPPETS[0], names)
    assert names["out"].shape == (1, 1, 8, 64) and torch.isfinite(names["out"]).all()


@pytest.mark.skipif(not (ROOT / "examples/tiny_hybrid/model.safetensors").exists(), reason="no trained model here")
def test_engine_snippet(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(SNIPPETS[1], {})
    text, usage = capsys.readouterr().out.rsplit("\n{", 1)
    assert text.startswith('in names:\n            raise ValueError("Invalid names: %s" %')
    assert usage.startswith("'prompt_tokens': 39, 'completion_tokens': 60")
