"""The trained example model: the runner computes what its differentiable training twin computes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mimo_tiny import PagedRunner

import swa_attn
from swa_attn import native
from swa_attn.runner import load_model

load_file = pytest.importorskip("safetensors.torch", reason="checkpoints are safetensors files").load_file

DIRECTORY = Path(__file__).resolve().parents[2] / "examples" / "tiny_hybrid"
pytestmark = pytest.mark.skipif(
    not (DIRECTORY / "model.safetensors").is_file(), reason="examples/tiny_hybrid holds no trained weights"
)
LENGTH = 256  # the twin wants a multiple of its window, 128


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request):
    if request.param == "cpu" and native.unavailable():
        pytest.skip(f"backend cpu: {native.unavailable()}")
    with swa_attn.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def models():
    spec = importlib.util.spec_from_file_location("tiny_hybrid_model", DIRECTORY / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    twin = module.TinyHybrid().eval()
    weights = load_file(DIRECTORY / "model.safetensors")
    twin.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return twin, load_model(DIRECTORY, dtype=torch.float32)


@pytest.fixture(scope="module", params=["random bytes", "its own source"])
def tokens(request):
    if request.param == "random bytes":
        return torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(0))
    return torch.tensor(list((DIRECTORY / "model.py").read_bytes()[:LENGTH]))


@pytest.mark.parametrize("chunk_size", [LENGTH, 100])
def test_logits_equal_the_training_twins(models, tokens, chunk_size):
    twin, ours = models
    with torch.no_grad():
        expected = twin(tokens[None])[0]
    runner = PagedRunner(ours)
    got = runner.run(runner.start(), tokens, chunk_size)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_config_says_what_was_trained(models):
    _, ours = models
    assert ours.config.swa.window == 128  # sliding_window counts the query's own key
    assert [g.name for g in ours.config.kv_groups()] == ["full", "swa"]
    assert ours.config.eos_token_ids == (256,)
