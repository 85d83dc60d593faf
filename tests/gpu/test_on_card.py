"""The wrapper that runs a GPU backend on CPU tensors, with the CPU in the card's place."""

import pytest
import torch

import swa_attn
from bench.gpu import sanitized
from swa_attn import backends
from swa_attn.testing import AttentionCase, build, emulated_backend
from swa_attn.testing.card import OnCard
from swa_attn.testing.cases import empty_pool


class Recorder:
    """The reference backend, which remembers the tensors it was given."""

    def __init__(self):
        self.seen = []

    def lacks(self, case):
        return None if case.device == "cpu" and case.backend == "recorder" else "not asked for by its own name"

    def __getattr__(self, op):
        def run(*args, **options):
            self.seen += [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
            getattr(backends.load("reference"), op)(*args, **options)

        return run


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    recorder = Recorder()
    backends.register("moved", OnCard("recorder", lambda name: recorder, "cpu"))
    with swa_attn.use_backend("moved"):
        yield recorder
    backends.load.cache_clear()
    backends._choose.cache_clear()


@pytest.mark.parametrize("layout", ["nhd", "packed", "padded"])
def test_results_come_back_and_layouts_stay(recorder, layout):
    inputs = build(AttentionCase(layout=layout, host=0.4, sinks=True))
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    q, k, *_ = recorder.seen
    assert k.stride() == inputs.k_cache.stride() and k.data_ptr() != inputs.k_cache.data_ptr()
    assert q.data_ptr() != inputs.q.data_ptr()
    with swa_attn.use_backend("reference"):
        expected = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


def test_views_of_one_storage_stay_views_of_one_storage(recorder):
    key = torch.randn(2, 2, 16)
    k_cache, v_cache = empty_pool((3, 4, 2, 16), 8, "packed", torch.float32, float("nan"))
    swa_attn.append_kv(key, key[..., :8].contiguous(), k_cache, v_cache, torch.tensor([5, 0]))
    _, _, k, v, _ = recorder.seen
    assert k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert torch.equal(k_cache[1, 1], key[0]) and torch.equal(v_cache[0, 0], key[1, :, :8])
    assert k_cache.isnan().sum() == k_cache.numel() - key.numel()


@pytest.mark.parametrize("name", ["reference", "emulated"])
def test_what_runs_under_the_sanitizer_is_right(monkeypatch, name):
    """Its calls and comparisons, on other backends: `emulated` has the CUDA kernels."""
    if name == "emulated" and emulated_backend.unavailable():
        pytest.skip(emulated_backend.unavailable())
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    try:
        sanitized.run(OnCard(name, backends.load, "cpu"))
    finally:
        backends.load.cache_clear()
        backends._choose.cache_clear()
