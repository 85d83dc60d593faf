"""A tiny MiMo checkpoint with both kinds of layers and experts, under the names of the published ones."""

import json

import torch

from swa_attn.runner import ModelConfig
from swa_attn.runner.models import MiMoForCausalLM

CONFIG = {
    "model_type": "mimo_v2",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "hybrid_layer_pattern": [0, 1, 1],
    "moe_layer_freq": [0, 1, 0],
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 4,
    "head_dim": 12,
    "v_head_dim": 8,
    "sliding_window_size": 16,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
    "swa_rope_theta": 1e4,
    "attention_value_scale": 0.5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}


def random_parameters():
    """Those of the model that CONFIG describes, under our names, in float32."""
    generator = torch.Generator().manual_seed(0)
    model = MiMoForCausalLM(ModelConfig.from_dict(CONFIG))
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def hub_names(parameters):
    """As the published checkpoints store them: one matrix per expert, sinks under their own name."""
    tensors = {}
    for name, x in parameters.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for i, both in enumerate(x):
                gate, up = both.split(both.shape[0] // 2)
                tensors[f"{prefix}.{i}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{i}.up_proj.weight"] = up
        elif leaf == "down_proj":
            tensors |= {f"{prefix}.{i}.down_proj.weight": down for i, down in enumerate(x)}
        else:
            tensors[name.replace("attn.sinks", "attention_sink_bias")] = x
    return {name: x.clone() for name, x in tensors.items()}


def fuse_qkv(tensors, tp):
    """Rank by rank its query, key and value heads; written head by head, as a check on the loader's reshapes."""
    fused = {n: x for n, x in tensors.items() if not n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))}
    for layer in range(3):
        prefix = f"model.layers.{layer}.self_attn."
        heads = []
        for rank in range(tp):
            for part, dim in (("q", 12), ("k", 12), ("v", 8)):
                of_part = list(tensors[f"{prefix}{part}_proj.weight"].split(dim))
                share = len(of_part) // tp
                heads += of_part[rank * share : (rank + 1) * share]
        fused[prefix + "qkv_proj.weight"] = torch.cat(heads)
    return fused


def write(directory, tensors, config=CONFIG, shards=1, **more):
    from safetensors.torch import save_file

    (directory / "config.json").write_text(json.dumps({**config, **more}))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return
    names = sorted(tensors)
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
