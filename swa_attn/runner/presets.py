"""The published geometries of the MiMo family in the words of their `config.json`, for sizes and costs."""

from collections.abc import Mapping
from typing import Any

_FULL_LAYERS_48 = (0, 5, 11, 17, 23, 29, 35, 41, 47)
_FULL_LAYERS_70 = (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)

_FAMILY = {
    "vocab_size": 152576,
    "intermediate_size": 16384,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "sliding_window_size": 128,
    "sliding_window": 128,
    "attention_chunk_size": 128,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "partial_rotary_factor": 0.334,
    "swa_rope_theta": 10000,
    "hidden_act": "silu",
    "layernorm_epsilon": 1e-5,
    "moe_intermediate_size": 2048,
    "num_experts_per_tok": 8,
    "n_shared_experts": None,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def _layers(count: int, full: tuple[int, ...]) -> dict[str, Any]:
    return {
        "num_hidden_layers": count,
        "hybrid_layer_pattern": [int(i not in full) for i in range(count)],
        "moe_layer_freq": [int(i > 0) for i in range(count)],
    }


_MIMO_V2_FLASH = {
    **_FAMILY,
    **_layers(48, _FULL_LAYERS_48),
    "model_type": "mimo_v2_flash",
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "swa_num_attention_heads": 64,
    "num_key_value_heads": 4,
    "swa_num_key_value_heads": 8,
    "rope_theta": 5_000_000,
    "attention_value_scale": 0.707,
    "n_routed_experts": 256,
    "max_position_embeddings": 262144,
}
_MIMO_V2_5 = {
    **_MIMO_V2_FLASH,
    "model_type": "mimo_v2",
    "attention_projection_layout": "fused_qkv",
    "rope_theta": 10_000_000,
    "max_position_embeddings": 1048576,
}
_MIMO_V2_5_PRO = {
    **_MIMO_V2_5,
    **_layers(70, _FULL_LAYERS_70),
    "hidden_size": 6144,
    "num_attention_heads": 128,
    "swa_num_attention_heads": 128,
    "num_key_value_heads": 8,
    "swa_num_key_value_heads": 8,
    "attention_value_scale": 0.612,
    "n_routed_experts": 384,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mimo-v2-flash": _MIMO_V2_FLASH,
    "mimo-v2.5": _MIMO_V2_5,
    "mimo-v2.5-pro": _MIMO_V2_5_PRO,
}
