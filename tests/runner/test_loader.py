"""`load_model`: every way in which checkpoints name, fuse, shard and quantise weights, and every way to be wrong."""

import json
import sys

import pytest
import torch
from checkpoints import CONFIG, QUANTIZATION, fuse_qkv, hub_names, random_parameters, write

from swa_attn.runner import CheckpointError, ModelConfig, load_model
from swa_attn.runner.weights import expand_float8, split_fused_qkv

pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

EXPERTS = "model.layers.1.mlp.experts"
SINKS = "model.layers.1.self_attn.attention_sink_bias"


@pytest.fixture(scope="module")
def expected():
    return random_parameters()


def assert_loaded(model, expected):
    got = dict(model.named_parameters())
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(got[name], x), name


@pytest.mark.parametrize("shards", [1, 3])
def test_hub_names(tmp_path, expected, shards):
    write(tmp_path, hub_names(expected), shards=shards)
    model = load_model(tmp_path)
    assert_loaded(model, expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config == ModelConfig.from_dict(CONFIG)


def test_transformers_names_in_memory(tmp_path, expected):
    write(tmp_path, {name.replace("attn.sinks", "sinks"): x for name, x in expected.items()})
    assert_loaded(load_model(tmp_path), expected)


@pytest.mark.parametrize("tp", [None, 1, 2])
def test_fused_interleaved_qkv(tmp_path, expected, tp):
    write(tmp_path, fuse_qkv(hub_names(expected), tp or 2), attention_projection_layout="fused_qkv")
    assert_loaded(load_model(tmp_path, fused_qkv_tp=tp), expected)


def test_the_wrong_degree_gives_other_weights(tmp_path, expected):
    write(tmp_path, fuse_qkv(hub_names(expected), 2))
    wrong = load_model(tmp_path, fused_qkv_tp=1).model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(wrong, expected["model.layers.0.self_attn.q_proj.weight"])
    with pytest.raises(CheckpointError, match="fused_qkv_tp must divide 8 query and 2 KV heads: 4"):
        load_model(tmp_path, fused_qkv_tp=4)


@pytest.mark.parametrize(("name", "ranks"), [("mimo-v2.5", 4), ("mimo-v2.5-pro", 8)])
def test_published_fused_rows(name, ranks):
    """13,568 and 14,848 rows in V2.5, 27,136 in V2.5-Pro; the ranks are the full layers' KV heads."""
    config = ModelConfig.preset(name)
    rows = {"mimo-v2.5": (13568, 14848), "mimo-v2.5-pro": (27136, 27136)}[name]
    assert config.full.num_kv_heads == ranks
    for attention, count in zip((config.full, config.swa), rows, strict=True):
        q, k, v = split_fused_qkv(torch.empty(count, 1, device="meta"), attention, ranks)
        assert q.shape[0] == attention.num_q_heads * 192
        assert k.shape[0] == attention.num_kv_heads * 192 and v.shape[0] == attention.num_kv_heads * 128


def quantise(weight, block, num_ranks=1):
    """float8 and one scale per block, block by block in plain loops."""
    parts, scales = [], []
    for part in weight.chunk(num_ranks):
        stored, scale = torch.empty_like(part), torch.empty(-(-part.shape[0] // block), -(-part.shape[1] // block))
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                where = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
                scale[i, j] = part[where].abs().max() / 448
                stored[where] = part[where] / scale[i, j]
        parts.append(stored.to(torch.float8_e4m3fn))
        scales.append(scale)
    return torch.cat([p.float() for p in parts]).to(torch.float8_e4m3fn), torch.cat(scales)


def dequantise(weight, scale, block, num_ranks=1):
    parts = [p.clone() for p in weight.float().chunk(num_ranks)]
    for part, own in zip(parts, scale.chunk(num_ranks), strict=True):
        for i in range(own.shape[0]):
            for j in range(own.shape[1]):
                part[i * block : (i + 1) * block, j * block : (j + 1) * block] *= own[i, j]
    return torch.cat(parts)


@pytest.mark.parametrize(("rows", "columns", "ranks"), [(32, 32, 1), (40, 21, 1), (72, 32, 2), (16, 16, 1), (1, 1, 1)])
def test_block_scaled_float8(rows, columns, ranks):
    weight = torch.randn(rows, columns)
    stored, scale = quantise(weight, 16, ranks)
    got = expand_float8(stored, scale, (16, 16), ranks)
    assert torch.equal(got, dequantise(stored, scale, 16, ranks))
    assert (got - weight).abs().max() <= weight.abs().max() / 16


def test_a_float8_checkpoint_with_fused_qkv(tmp_path, expected):
    """Blocks start anew in every rank: 68 rows per rank are 5 blocks of 16, so 10 scales for 136 rows, not 9."""
    tensors, exact = {}, dict(expected)
    for name, x in fuse_qkv(hub_names(expected), 2).items():
        ranks = 2 if "qkv_proj" in name else 1
        if name.endswith("_proj.weight") and "o_proj" not in name:
            tensors[name], tensors[name + "_scale_inv"] = quantise(x, 16, ranks)
        else:
            tensors[name] = x
    write(tmp_path, tensors, quantization_config=QUANTIZATION, shards=4)
    model = load_model(tmp_path)
    got = dict(model.named_parameters())
    for name in exact:
        same_as_stored = torch.equal(got[name], exact[name])
        quantised = name.endswith(("_proj.weight", "_proj")) and "o_proj" not in name
        assert same_as_stored != quantised, name
        assert (got[name] - exact[name]).abs().max() <= exact[name].abs().max() / 16, name
    with pytest.raises(CheckpointError, match=r"qkv_proj.weight \(the scale .* in 1 parts must be of shape \[9, 2\]"):
        load_model(tmp_path, fused_qkv_tp=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(tmp_path, expected, dtype):
    write(tmp_path, hub_names(expected))
    for name, p in load_model(tmp_path, dtype=dtype).named_parameters():
        own = torch.float32 if ".mlp.gate." in name else dtype
        assert p.dtype == own and torch.equal(p, expected[name].to(own)), name


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_the_router_is_float32_in_every_model(tmp_path, expected, stored):
    """As stored if that is float32, else widened: a rounded copy would send tokens to other experts."""
    tensors, config = hub_names(expected), {"torch_dtype": "bfloat16"}
    name = "model.layers.1.mlp.gate.weight"
    tensors[name] = (tensors[name] + 2**-12).to(stored)  # not a bfloat16
    if stored == torch.float8_e4m3fn:
        tensors[name + "_scale_inv"] = torch.full((1, 2), 0.3)
        config["quantization_config"] = QUANTIZATION
    write(tmp_path, tensors, **config)
    gate = load_model(tmp_path).model.layers[1].mlp.gate
    value = tensors[name].float() * (0.3 if stored == torch.float8_e4m3fn else 1)
    assert gate.weight.dtype == gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.weight, value)
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    scores = (x.double() @ value.double().T).sigmoid() + gate.e_score_correction_bias.double()
    assert torch.equal(gate(x)[0].sort(1).values, scores.topk(2, dim=1).indices.sort(1).values)


def test_the_configs_dtype_is_the_default(tmp_path, expected):
    write(tmp_path, hub_names(expected), torch_dtype="bfloat16")
    assert load_model(tmp_path).lm_head.weight.dtype == torch.bfloat16


def test_what_is_not_the_models_is_ignored_by_name(tmp_path, expected):
    extra = {"model.mtp.layers.0.eh_proj.weight": torch.zeros(3), "visual.blocks.0.weight": torch.zeros(2)}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)
    write(tmp_path, {**hub_names(expected), **extra})
    assert_loaded(load_model(tmp_path), expected)
    write(tmp_path, {**hub_names(expected), **extra, "adapter.0.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"unexpected: adapter.0.weight$"):
        load_model(tmp_path)
    assert_loaded(load_model(tmp_path, ignore_prefixes=["adapter."]), expected)


def test_tied_embeddings_need_no_head(tmp_path, expected):
    tensors = hub_names(expected)
    for head in (tensors.pop("lm_head.weight"), None):
        write(tmp_path, tensors if head is None else {**tensors, "lm_head.weight": head}, tie_word_embeddings=True)
        model = load_model(tmp_path)
        assert model.lm_head is None
        assert torch.equal(model.model.embed_tokens.weight, expected["model.embed_tokens.weight"])


def without(*names):
    return lambda tensors: {n: x for n, x in tensors.items() if n not in names}


def plus(**tensors):
    return lambda old: {**old, **{n.replace("__", "."): x for n, x in tensors.items()}}


WRONG = {
    "missing": (
        without("model.norm.weight", SINKS),
        r"missing: model.layers.1.self_attn.attn.sinks, model.norm.weight",
    ),
    "half an expert": (
        without(f"{EXPERTS}.2.up_proj.weight"),
        r"missing: .*gate_up_proj \(4480 of 5120 elements given\)",
    ),
    "unexpected": (plus(model__layers__0__extra=torch.zeros(2)), "unexpected: model.layers.0.extra"),
    "a layer too many": (plus(model__layers__3__input_layernorm__weight=torch.zeros(32)), "unexpected: model.layers.3"),
    "an expert too many": (
        lambda old: {**old, f"{EXPERTS}.4.up_proj.weight": torch.zeros(20, 32)},
        "unexpected: .*experts.4.up_proj.weight",
    ),
    "a sink too many": (
        lambda old: {**old, SINKS.replace("1", "0"): torch.zeros(8)},
        "unexpected: model.layers.0.self_attn.attention_sink_bias",
    ),
    "wrong shape": (
        lambda old: {**old, "lm_head.weight": torch.zeros(41, 32)},
        r"wrong shape: lm_head.weight \(\[41, 32\] for \[40, 32\]\)",
    ),
    "wrong fused rows": (
        lambda old: {**fuse_qkv(old, 2), "model.layers.0.self_attn.qkv_proj.weight": torch.zeros(130, 32)},
        r"wrong shape: .*0.self_attn.qkv_proj.weight \(a fused qkv_proj must have 136 rows, got 130\)",
    ),
    "given twice": (
        lambda old: {**old, SINKS.replace("attention_sink_bias", "sinks"): torch.zeros(8)},
        "given twice: model.layers.1.self_attn.attn.sinks",
    ),
    "given whole and in parts": (
        lambda old: {**old, f"{EXPERTS}.down_proj": torch.zeros(4, 32, 20)},
        "given twice: .*experts.down_proj",
    ),
    "integers": (
        lambda old: {**old, "lm_head.weight": torch.zeros(40, 32, dtype=torch.int32)},
        r"unreadable dtype: lm_head.weight \(I32\)",
    ),
    "float8 without being quantised": (
        lambda old: {**old, "lm_head.weight": torch.zeros(40, 32).to(torch.float8_e4m3fn)},
        r"lm_head.weight \(F8_E4M3, but config.json has no quantization_config\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_listed(tmp_path, expected, case):
    change, message = WRONG[case]
    write(tmp_path, change(hub_names(expected)))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_float8_needs_its_scale(tmp_path, expected):
    tensors = hub_names(expected)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    write(tmp_path, tensors, quantization_config=QUANTIZATION)
    with pytest.raises(CheckpointError, match=r"F8_E4M3 without lm_head\.weight_scale_inv"):
        load_model(tmp_path)


def test_long_lists_are_cut(tmp_path, expected):
    write(tmp_path, {f"x{i:02}": torch.zeros(1) for i in range(30)})
    with pytest.raises(CheckpointError, match=r"unexpected: x00, .* x19 and 10 more"):
        load_model(tmp_path)


def test_missing_and_damaged_files(tmp_path, expected):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        load_model(tmp_path)
    write(tmp_path, hub_names(expected), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())
    first, second = sorted(set(files["weight_map"].values()))
    files["weight_map"] |= {"model.norm.weight": second if files["weight_map"]["model.norm.weight"] == first else first}
    index.write_text(json.dumps(files))
    with pytest.raises(CheckpointError, match=r"does not hold model.norm.weight, as the index says"):
        load_model(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(CheckpointError, match=f"the index names files that are missing: {second}"):
        load_model(tmp_path)


def test_safetensors_is_asked_for_by_name(tmp_path, expected, monkeypatch):
    write(tmp_path, hub_names(expected))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'swa_attn\[runner\]'"):
        load_model(tmp_path)
