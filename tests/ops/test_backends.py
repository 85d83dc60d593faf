"""Which backend runs, why, and how to fix one."""

import logging
import types

import pytest
import torch

import swa_attn
from swa_attn import backends
from swa_attn.testing import AttentionCase, build

CASE = backends.Case("decode", "cpu", "cpu", torch.float32, torch.float32, 16, 2, 64, 64)


def test_the_first_backend_that_lacks_nothing_runs(monkeypatch, caplog):
    asked = []

    class Refuses:
        def lacks(self, case):
            asked.append(case)
            return "head_dim 16 is odd"

    reference = backends.load("reference")
    monkeypatch.setattr(backends, "load", lambda name: reference if name == "reference" else Refuses())
    backends._choose.cache_clear()
    try:
        inputs = build(AttentionCase())
        with caplog.at_level(logging.DEBUG, logger="swa_attn"):
            assert backends.choose("prefill", inputs.q, inputs.k_cache) is reference
            assert backends.choose("prefill", inputs.q, inputs.k_cache) is reference
        assert "prefill runs on reference" in caplog.text and "cpu: head_dim 16 is odd" in caplog.text
        assert len(asked) == 1  # decided once per kind of call
        case = asked[0]
        assert (case.op, case.backend, case.device) == ("prefill", "cpu", "cpu")
        assert (case.page_size, case.group_size, case.head_dim, case.v_head_dim) == (4, 2, 16, 16)
        with swa_attn.use_backend("cpu"), pytest.raises(NotImplementedError, match="cpu: head_dim 16 is odd"):
            swa_attn.prefill(*inputs.prefill_args)
    finally:
        backends._choose.cache_clear()


def test_use_backend_restores_and_refuses_unknown_names():
    unknown = pytest.raises(ValueError, match=r"backend must be one of cuda, triton, cpu, reference.*, got 'gpu'")
    with unknown, swa_attn.use_backend("gpu"):
        pass
    with swa_attn.use_backend("reference"):
        assert backends._forced == "reference"
        with swa_attn.use_backend(None):
            assert backends._forced is None
        assert backends._forced == "reference"
    assert backends._forced is None


def test_a_registered_backend_runs_only_by_name(monkeypatch):
    mine = types.ModuleType("mine")
    mine.lacks = lambda case: None if case.op == "merge_states" else "it only merges"
    mine.merge_states = lambda *args, sinks, out, lse: (out.fill_(1), lse.fill_(2))
    monkeypatch.setattr(backends, "_registered", {})
    backends.register("mine", mine)
    backends.register("mine", mine)
    for name, module in (("mine", types.ModuleType("other")), ("cpu", mine)):
        with pytest.raises(ValueError, match=f"another backend, got '{name}'"):
            backends.register(name, module)
    states = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    try:
        with swa_attn.use_backend("mine"):
            out, lse = swa_attn.merge_states(*states, *states)
            with pytest.raises(NotImplementedError, match="mine: it only merges"):
                swa_attn.copy_pages(*[torch.zeros(1, 1, 1, 1, 1)] * 2, *[torch.zeros(1, dtype=torch.int64)] * 2)
        assert (out == 1).all() and (lse == 2).all()
        assert (swa_attn.merge_states(*states, *states)[0] == 0).all()
    finally:
        backends.load.cache_clear()
        backends._choose.cache_clear()


def test_a_backend_that_cannot_be_imported_says_why(monkeypatch):
    def fail(name):
        raise ImportError("no such thing as triton")

    monkeypatch.setattr(backends, "load", fail)
    assert backends.lacks("triton", CASE) == "not importable: no such thing as triton"
