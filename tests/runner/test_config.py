"""`ModelConfig`: both dialects of `config.json`, the window setting, the published geometries, and every refusal."""

import dataclasses
import json

import pytest
import torch

from swa_attn.runner import ConfigError, ModelConfig
from swa_attn.runner.presets import PRESETS

HUB = {
    "model_type": "mimo_v2_flash",
    "architectures": ["MiMoV2FlashForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "head_dim": 24,
    "v_head_dim": 16,
    "swa_head_dim": 36,
    "swa_v_head_dim": 8,
    "sliding_window_size": 128,
    "sliding_window": 128,
    "attention_chunk_size": 128,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5_000_000,
    "swa_rope_theta": 10_000,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "attention_value_scale": 0.707,
    "moe_layer_freq": [0, 1, 1, 1],
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "n_shared_experts": None,
    "layernorm_epsilon": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "eos_token_id": 3,
    "torch_dtype": "bfloat16",
    "num_nextn_predict_layers": 3,
}
TRANSFORMERS = {
    "model_type": "mimo_v2_flash",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "v_head_dim": 16,
    "sliding_window": 129,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.334},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.334},
    },
    "attention_value_scale": None,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "eos_token_id": [3, 5],
    "dtype": "float32",
}


def parse(base=HUB, without=(), **changes):
    return ModelConfig.from_dict({k: v for k, v in {**base, **changes}.items() if k not in without})


def test_the_hubs_dialect():
    config = parse()
    assert config.layer_kinds == ("full", "swa", "swa", "full")
    assert config.moe_layers == (False, True, True, True)
    full, swa = config.full, config.swa
    assert (full.num_q_heads, full.num_kv_heads, full.head_dim, full.v_head_dim) == (8, 2, 24, 16)
    assert (swa.num_q_heads, swa.num_kv_heads, swa.head_dim, swa.v_head_dim) == (4, 4, 36, 8)
    assert (full.window, swa.window) == (None, 129)
    assert (full.sinks, swa.sinks) == (False, True)
    assert (full.rope_theta, swa.rope_theta) == (5e6, 1e4)
    assert (full.rotary_dim, swa.rotary_dim) == (8, 12)
    assert config.attention(0) is full and config.attention(1) is swa
    assert config.moe.scaling_factor == 1.0 and (config.moe.num_groups, config.moe.num_top_groups) == (4, 2)
    assert config.value_scale == 0.707 and config.rms_norm_eps == 1e-5
    assert config.eos_token_ids == (3,) and config.dtype == torch.bfloat16 and config.weight_block_size is None
    hash(config)


def test_transformers_dialect():
    config = parse(TRANSFORMERS)
    assert config.layer_kinds == ("full", "swa", "swa", "full")
    assert config.moe_layers == (False, True, True, True)
    assert config.swa.num_kv_heads == 4, "transformers doubles the full layers' KV heads"
    assert (config.swa.num_q_heads, config.swa.head_dim, config.swa.v_head_dim) == (8, 24, 16)
    assert config.swa.window == 129, "sliding_window alone counts the query's own key"
    assert (config.full.rope_theta, config.swa.rope_theta) == (5e6, 1e4)
    assert config.swa.sinks and not config.full.sinks
    assert config.value_scale == 1.0 and config.moe.scaling_factor == 2.5
    assert config.eos_token_ids == (3, 5) and config.dtype == torch.float32


def test_transformers_reads_the_hubs_file_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this test")
    theirs = transformers.MiMoV2FlashConfig(
        **{k: v for k, v in TRANSFORMERS.items() if k not in ("model_type", "sliding_window", "dtype")},
        sliding_window_size=128,
    )
    theirs.save_pretrained(tmp_path)
    config = ModelConfig.from_file(tmp_path)
    assert config.swa.window == theirs.sliding_window == 129
    assert config.kv_groups() == parse(TRANSFORMERS).kv_groups()


@pytest.mark.parametrize(("reading", "keys"), [("size_plus_self", 129), ("size_includes_self", 128)])
def test_the_window_setting(reading, keys):
    assert ModelConfig.from_dict(HUB, mimo_window=reading).swa.window == keys
    assert ModelConfig.from_dict({**HUB, "sliding_window": 129}, mimo_window=reading).swa.window == keys
    assert ModelConfig.preset("mimo-v2.5-pro", mimo_window=reading).swa.window == keys
    alone = {k: v for k, v in HUB.items() if k != "sliding_window_size"}
    assert ModelConfig.from_dict(alone, mimo_window=reading).swa.window == 128


def test_groups_list_their_layers_and_leave_out_empty_ones():
    full, swa = parse().kv_groups()
    assert (full.name, full.layers, full.window) == ("full", (0, 3), None)
    assert (swa.name, swa.layers, swa.window) == ("swa", (1, 2), 129)
    assert (swa.num_kv_heads, swa.head_dim, swa.v_head_dim) == (4, 36, 8)
    (only,) = parse(hybrid_layer_pattern=[1, 1, 1, 1]).kv_groups()
    assert only.name == "swa" and only.layers == (0, 1, 2, 3)


PUBLISHED = {  # layers full/windowed, KV heads full/windowed, KiB per token in bfloat16 full/windowed
    "mimo-v2-flash": (9, 39, 4, 8, 22.5, 195),
    "mimo-v2.5": (9, 39, 4, 8, 22.5, 195),
    "mimo-v2.5-pro": (10, 60, 8, 8, 50, 300),
}


@pytest.mark.parametrize("name", PRESETS)
def test_published_geometries(name):
    config = ModelConfig.preset(name)
    full, swa = config.kv_groups()
    kib = [g.bytes_per_token(torch.bfloat16) / 1024 for g in (full, swa)]
    assert (len(full.layers), len(swa.layers), full.num_kv_heads, swa.num_kv_heads, *kib) == PUBLISHED[name]
    assert (full.head_dim, full.v_head_dim, swa.head_dim, swa.v_head_dim) == (192, 128, 192, 128)
    assert config.full.rotary_dim == config.swa.rotary_dim == 64
    assert config.full.num_q_heads == config.swa.num_q_heads == (128 if name.endswith("pro") else 64)
    assert full.layers[0] == 0 and full.layers[-1] == config.num_layers - 1
    assert config.moe_layers == (False,) + (True,) * (config.num_layers - 1)
    assert config.weight_block_size == (128, 128)


def test_published_layer_patterns():
    full = {name: ModelConfig.preset(name).kv_groups()[0].layers for name in PRESETS}
    assert full["mimo-v2-flash"] == full["mimo-v2.5"] == (0, *range(5, 48, 6))
    assert full["mimo-v2.5-pro"] == (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)


def test_an_integer_moe_layer_freq_is_a_period():
    assert parse(moe_layer_freq=1).moe_layers == (True,) * 4
    assert parse(moe_layer_freq=2).moe_layers == (True, False, True, False)


def test_dense_models_need_no_expert_fields():
    gone = ("moe_layer_freq", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    config = parse(without=gone)
    assert config.moe is None and not any(config.moe_layers)
    assert parse(moe_layer_freq=[0] * 4).moe is None


def test_both_dialects_in_one_file():
    both = {
        **TRANSFORMERS,
        **HUB,
        "rope_parameters": None,
        "eos_token_id": 3,
        "dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
    }
    assert parse(both) == parse()


def test_a_flat_rope_parameters_repeats_the_full_layers():
    flat = {"rope_type": "default", "rope_theta": 5_000_000, "partial_rotary_factor": 0.334}
    assert parse(rope_parameters=flat) == parse()


def test_mimo_v2_must_say_its_windowed_kv_heads():
    assert parse(model_type="mimo_v2", attention_projection_layout="fused_qkv").swa.num_kv_heads == 4
    with pytest.raises(ConfigError, match="swa_num_key_value_heads must be given"):
        parse(model_type="mimo_v2", without=("swa_num_key_value_heads",))


def test_float8_checkpoints():
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "ignored_layers": ["model.layers.0.self_attn.o_proj"],
    }
    assert parse(quantization_config=quantization).weight_block_size == (128, 128)
    for change in ({"store_dtype": "mxfp4"}, {"quant_method": "awq"}, {"weight_block_size": None}, {"fmt": "e5m2"}):
        with pytest.raises(ConfigError, match="quantization_config is not block-wise float8"):
            parse(quantization_config={**quantization, **change})


def test_a_file_or_its_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUB))
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(tmp_path / "config.json") == parse()


REFUSED = [
    ({"model_type": "gpt_oss"}, "model_type must be 'mimo_v2_flash' or 'mimo_v2', got 'gpt_oss'"),
    ({"model_type": None}, "model_type must be given"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
    ({"attention_bias": True}, "attention_bias must be False"),
    ({"n_shared_experts": 1}, "n_shared_experts must be 0, got 1"),
    ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid'"),
    ({"topk_method": "greedy"}, "topk_method must be 'noaux_tc'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling.rope_type must be 'default', got 'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type must be 'default', got 'linear'"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1}}}, "rope_theta = 5000000 and .* = 1 disagree"),
    ({"rope_theta": None}, "rope_theta or rope_parameters.full_attention.rope_theta must be given"),
    ({"partial_rotary_factor": 0.3}, "an even part of 24 dims is rotated, got 7"),
    ({"layer_types": ["full_attention"] * 4}, "hybrid_layer_pattern = .* and layer_types = .* disagree"),
    ({"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern must be a list of num_hidden_layers = 4 values"),
    ({"hybrid_layer_pattern": [0, 1, 2, 0]}, "hybrid_layer_pattern must be of 0, 1, got 2"),
    ({"hybrid_layer_pattern": None}, "hybrid_layer_pattern or layer_types must be given"),
    ({"sliding_window": 64}, "sliding_window_size = 128 and sliding_window = 64 disagree"),
    ({"sliding_window_size": 0}, "sliding_window_size must be at least 1, got 0"),
    ({"num_key_value_heads": 3}, "a multiple of 3 KV heads, got 8"),
    ({"hidden_size": "64"}, "hidden_size must be of type int, got '64'"),
    ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be of type bool, got 1"),
    ({"moe_layer_freq": None}, "moe_layer_freq or mlp_layer_types must be given"),
    ({"n_group": 3}, "n_group must be such that 16 experts make equal groups"),
    ({"topk_group": 5}, "topk_group must be at most n_group = 4, got 5"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok must be at most the experts of 2 of 4 groups, got 9"),
    ({"attention_value_scale": "half"}, "attention_value_scale must be a number above 0, got 'half'"),
    ({"torch_dtype": "int8"}, "float32, bfloat16 or float16, got 'int8'"),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06 and layernorm_epsilon = 1e-05 disagree"),
    ({"attention_gate": "sigmoid"}, "unknown fields attention_gate"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(c)[1:-1][:50] for c, _ in REFUSED])
def test_what_would_change_the_mathematics_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


def test_the_value_scale_must_be_said():
    with pytest.raises(ConfigError, match="attention_value_scale must be given"):
        parse(without=("attention_value_scale",))


def test_unknown_fields_can_be_declared_harmless():
    assert ModelConfig.from_dict({**HUB, "vision_config": {}}, ignore_fields=["vision_config"]) == parse()
    assert ModelConfig.from_dict({**HUB, "vision_config": None}) == parse()


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="mimo_window must be one of size_plus_self, size_includes_self, got 128"):
        ModelConfig.from_dict(HUB, mimo_window=128)
    with pytest.raises(KeyError, match="mimo-v2-flash"):
        ModelConfig.preset("mimo")


def test_the_fingerprint_changes_with_everything_that_decides_k_and_v():
    config = ModelConfig.preset("mimo-v2.5-pro")
    changed = [config.fingerprint("b"), ModelConfig.preset("mimo-v2.5").fingerprint("a")]
    changed.append(ModelConfig.preset("mimo-v2.5-pro", mimo_window="size_includes_self").fingerprint("a"))
    for name, value in (("value_scale", 0.5), ("layer_kinds", config.layer_kinds[::-1]), ("weight_block_size", None)):
        if getattr(config, name) != value:
            changed.append(dataclasses.replace(config, **{name: value}).fingerprint("a"))
    for kind in ("full", "swa"):
        attention = getattr(config, kind)
        for name, value in (
            ("rope_theta", 1.0),
            ("rotary_dim", 2),
            ("sinks", not attention.sinks),
            ("num_kv_heads", 1),
        ):
            other = dataclasses.replace(attention, **{name: value})
            changed.append(dataclasses.replace(config, **{kind: other}).fingerprint("a"))
    assert config.fingerprint("a") == ModelConfig.preset("mimo-v2.5-pro").fingerprint("a")
    assert len({config.fingerprint("a"), *changed}) == len(changed) + 1
