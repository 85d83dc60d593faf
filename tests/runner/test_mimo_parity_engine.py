"""The whole runner against transformers: scheduling, two page pools, prefix hits and decoding give its tokens."""

import pytest
import torch
from mimo_tiny import hf_config, hf_model

import swa_attn
from swa_attn import native
from swa_attn.kvcache import SnapshotPolicy
from swa_attn.runner import Engine, SamplingParams, load_model

pytest.importorskip("transformers.models.mimo_v2_flash", reason="transformers is the oracle of these tests")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

NEW_TOKENS = 10


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request):
    if request.param == "cpu" and native.unavailable():
        pytest.skip(f"backend cpu: {native.unavailable()}")
    with swa_attn.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mimo")
    hf = hf_model(hf_config(16))
    hf.save_pretrained(directory)
    return hf, load_model(directory)


def transformers_tokens(hf, prompt):
    prompt = torch.tensor([prompt])
    with torch.no_grad():
        out = hf.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False)
    return out[0, prompt.shape[1] :].tolist()


def conversation():
    """Three prompts over one shared prefix, of lengths that are not multiples of anything."""
    generator = torch.Generator().manual_seed(5)
    prefix, *own = (torch.randint(0, 96, (n,), generator=generator).tolist() for n in (75, 9, 22, 1))
    return [prefix + rest for rest in own]


@pytest.mark.parametrize("max_tokens_per_step", [256, 13])
def test_greedy_tokens_with_prefix_hits(models, max_tokens_per_step):
    hf, ours = models
    engine = Engine(
        ours,
        ours.config.kv_groups(),
        page_size=8,
        num_pages={"full": 64, "swa": 40},
        max_tokens_per_step=max_tokens_per_step,
        policy=SnapshotPolicy(
            every=16, quotas={}
        ),  # so that the shared prefix, whose end is no page boundary, can be resumed near it
    )
    params = SamplingParams(max_tokens=NEW_TOKENS)
    prompts = conversation()
    first = engine.generate(prompts[:1], params)
    rest = engine.generate(prompts[1:], params)  # batched, over what the first has left behind
    again = engine.generate(prompts, params)
    expected = [transformers_tokens(hf, prompt) for prompt in prompts]
    assert [c.tokens for c in first + rest] == expected
    assert [c.tokens for c in again] == expected
    assert first[0].usage.cached_tokens == 0
    assert all(c.usage.cached_tokens >= 64 for c in rest + again)
