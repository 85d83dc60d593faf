"""The engine on a small random MiMo model and the reference ops: with and without a cache, the same tokens.

Pages hold NaN whenever nobody has written them, so reading one that the window has left would show.
"""

import pytest
import torch
from mimo_tiny import randomise

import swa_attn
from swa_attn.kvcache import Planner
from swa_attn.runner import Engine, ModelConfig, SamplingParams
from swa_attn.runner.models import MiMoForCausalLM

CONFIG = {
    "model_type": "mimo_v2_flash",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "swa_num_key_value_heads": 2,
    "head_dim": 24,
    "v_head_dim": 16,
    "sliding_window_size": 12,  # 13 visible keys
    "partial_rotary_factor": 0.334,
    "rope_theta": 5_000_000,
    "swa_rope_theta": 10_000,
    "attention_value_scale": 0.707,
    "moe_layer_freq": [0, 1, 1, 1],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "layernorm_epsilon": 1e-5,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
PARAMS = SamplingParams(max_tokens=8)

pytestmark = pytest.mark.usefixtures("poisoned_pools")


@pytest.fixture(autouse=True)
def reference_backend():
    with swa_attn.use_backend("reference"):
        yield


@pytest.fixture(scope="module")
def model():
    return randomise(MiMoForCausalLM(ModelConfig.from_dict(CONFIG)), seed=3)


def make_engine(model, **options) -> Engine:
    options = {"page_size": 4, "num_pages": {"full": 80, "swa": 40}, **options}
    return Engine(model, model.config.kv_groups(), **options)


def cold(model, prompts) -> list[list[int]]:
    """Each prompt alone, in one chunk, without a prefix cache."""
    engine = make_engine(model, enable_prefix_cache=False)
    return [engine.generate([prompt], PARAMS)[0].tokens for prompt in prompts]


def text(seed: int, length: int) -> list[int]:
    return torch.randint(1, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class MostReuse(Planner):
    """Rebuilds whenever it can, whatever this machine's rates are."""

    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


@pytest.mark.parametrize("rebuild", [False, True])
def test_conversations_and_fan_outs_with_hits_give_the_cold_tokens(model, rebuild):
    engine = make_engine(model, max_tokens_per_step=16, planner=MostReuse(rebuild=rebuild))
    shared = text(0, 22)
    prompts = [shared + text(i, 9) for i in range(1, 5)]
    first = [engine.generate([prompt], PARAMS)[0] for prompt in prompts]
    assert [c.tokens for c in first] == cold(model, prompts)
    # Nobody has left a window where the second one parts from the first.
    assert [c.usage.cached_tokens for c in first] == [0, 20 if rebuild else 0, 20, 20]
    assert engine.stats().num_rebuilds == rebuild
    follow_ups = [p + c.tokens + text(9, 5) for p, c in zip(prompts, first, strict=True)]
    second = engine.generate(follow_ups, PARAMS)
    assert [c.tokens for c in second] == cold(model, follow_ups)
    assert [c.usage.cached_tokens for c in second] == [36] * 4


def test_preemption_gives_the_cold_tokens(model):
    engine = make_engine(model, num_pages={"full": 18, "swa": 14}, max_tokens_per_step=24)
    prompts = [text(i, 18 + i) for i in range(4)]
    completions = engine.generate(prompts, PARAMS)
    assert [c.tokens for c in completions] == cold(model, prompts)
    assert any(c.num_preemptions for c in completions)


@pytest.mark.parametrize("length", [19, 20, 21])
def test_a_repeat_gives_the_cold_tokens(model, length):
    engine = make_engine(model)
    runs = [engine.generate([text(7, length)], PARAMS)[0] for _ in range(2)]
    assert [c.tokens for c in runs] == cold(model, [text(7, length)]) * 2
    assert [c.usage.cached_tokens for c in runs] == [0, (length - 1) // 4 * 4]
