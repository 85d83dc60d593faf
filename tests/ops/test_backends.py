"""Which backend runs, why, and how to fix one."""

import logging

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
    unknown = pytest.raises(ValueError, match="backend must be one of cuda, triton, cpu, reference, got 'gpu'")
    with unknown, swa_attn.use_backend("gpu"):
        pass
    with swa_attn.use_backend("reference"):
        assert backends._forced == "reference"
        with swa_attn.use_backend(None):
            assert backends._forced is None
        assert backends._forced == "reference"
    assert backends._forced is None


def test_a_backend_that_cannot_be_imported_says_why(monkeypatch):
    def fail(name):
        raise ImportError("no such thing as triton")

    monkeypatch.setattr(backends, "load", fail)
    assert backends.lacks("triton", CASE) == "not importable: no such thing as triton"
