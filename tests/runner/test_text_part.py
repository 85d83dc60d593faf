"""Multimodal checkpoints, as published and as re-exported: the text model loads, and what was skipped is said."""

import logging

import pytest
import torch
from checkpoints import CONFIG, fuse_qkv, hub_names, random_parameters, write

from swa_attn.runner import CheckpointError, ConfigError, ModelConfig, load_model
from swa_attn.runner.text_part import SkippedPart, other_part, text_name

pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

VISION = {"depth": 28, "hidden_size": 1280, "hidden_act": "gelu", "vit_window_attn_types": [-1, 0]}
AUDIO = {"audio_channels": 20, "speech_vocab_size": "1280-256", "rope_theta": 640000}
TOKENS = (
    "image",
    "video",
    "audio",
    "vision_start",
    "vision_end",
    "audio_start",
    "audio_end",
    "video_start",
    "video_end",
)
PUBLISHED = {  # beside the text model's fields, in MiMo-V2.5 and V2.6
    "vision_config": VISION,
    "audio_config": AUDIO,
    "processor_config": {"patch_size": 16, "rope_type": "rope", "image_token_id": 2},
    "vision_model_type": "mimo_vl",
    **{f"{name}_token_id": i for i, name in enumerate(TOKENS)},
    "num_nextn_predict_layers": 3,
}
TOWERS = {
    "visual.blocks.0.attn.qkv.weight": torch.zeros(6, 2, dtype=torch.bfloat16),
    "visual.merger.mlp.0.weight": torch.zeros(5),
    "audio_encoder.projection.mlp.0.weight": torch.zeros(4),
    "speech_embeddings.0.weight": torch.zeros(3),
    "model.mtp.layers.0.eh_proj.weight": torch.zeros(7, dtype=torch.uint8),
}
SKIPPED = {
    "vision tower": SkippedPart(2, 6 * 2 * 2 + 5 * 4),
    "audio tower": SkippedPart(2, 4 * 4 + 3 * 4),
    "multi-token prediction": SkippedPart(1, 7),
}


@pytest.fixture(scope="module")
def expected():
    return random_parameters()


def assert_loaded(model, expected):
    for name, p in model.named_parameters():
        assert torch.equal(p, expected[name]), name


@pytest.mark.parametrize("shards", [1, 3])
def test_the_published_form(tmp_path, expected, caplog, shards):
    write(tmp_path, {**fuse_qkv(hub_names(expected), 2), **TOWERS}, shards=shards, **PUBLISHED)
    with caplog.at_level(logging.WARNING, "swa_attn"):
        model = load_model(tmp_path)
    assert_loaded(model, expected)
    assert model.config == ModelConfig.from_dict(CONFIG) and model.skipped == SKIPPED
    (record,) = caplog.records
    assert (
        record.getMessage()
        == (
            f"{tmp_path}: loading the text model; skipped: audio tower (2 tensors, 0.0 MiB), "
            "multi-token prediction (1 tensors, 0.0 MiB), vision tower (2 tensors, 0.0 MiB)"
        )
        or shards > 1
    )


@pytest.mark.parametrize(
    ("body", "head", "towers"),
    [("model.language_model.", "lm_head.", "model."), ("language_model.model.", "language_model.lm_head.", "")],
)
def test_nested_forms(tmp_path, expected, body, head, towers):
    nested = {}
    for name, x in hub_names(expected).items():
        nested[body + name[6:] if name.startswith("model.") else head + name.removeprefix("lm_head.")] = x
    others = {body + n[6:] if n.startswith("model.") else towers + n: x for n, x in TOWERS.items()}
    write(tmp_path, {**nested, **others})
    model = load_model(tmp_path)
    assert_loaded(model, expected)
    assert model.skipped == SKIPPED


def test_nested_float8_finds_its_scales(tmp_path, expected):
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    tensors = {f"language_model.{name}": x for name, x in fuse_qkv(hub_names(expected), 2).items()}
    name = "language_model.model.layers.0.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"] = torch.full((10, 2), 2.0)
    tensors["visual.x.weight_scale_inv"] = torch.zeros(1)
    write(tmp_path, tensors, quantization_config=quantization)
    model = load_model(tmp_path)
    rows = model.model.layers[0].self_attn.q_proj.weight[:12]
    assert torch.equal(rows, 2 * tensors[name][:12].float())
    assert model.skipped == {"vision tower": SkippedPart(1, 4)}


def test_what_belongs_to_the_text_model_still_has_to_fit(tmp_path, expected):
    for extra in (
        "model.layers.0.visual.weight",
        "layers.0.mlp.up_proj.weight",
        "model.visuals",
        "vision",
        "model.audio",
    ):
        write(tmp_path, {**hub_names(expected), **TOWERS, extra: torch.zeros(1)}, **PUBLISHED)
        with pytest.raises(CheckpointError, match=f"unexpected: {extra}$"):
            load_model(tmp_path)
    write(tmp_path, {n: x for n, x in hub_names(expected).items() if n != "model.norm.weight"} | TOWERS, **PUBLISHED)
    with pytest.raises(CheckpointError, match=r"missing: model.norm.weight$"):
        load_model(tmp_path)


def test_one_tensor_under_two_names_is_given_twice(tmp_path, expected):
    tensors = hub_names(expected)
    write(tmp_path, {**tensors, "language_model.lm_head.weight": tensors["lm_head.weight"].clone()})
    with pytest.raises(CheckpointError, match=r"given twice: lm_head.weight$"):
        load_model(tmp_path)


def test_strict_refuses_to_leave_parts_out(tmp_path, expected):
    write(tmp_path, {**hub_names(expected), **TOWERS}, **PUBLISHED)
    with pytest.raises(
        CheckpointError, match=r"strict, but only the text model can be loaded, not: .*vision tower \(2 ten"
    ):
        load_model(tmp_path, strict=True)
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}  # follows from the config: no part
    write(tmp_path, {**hub_names(expected), **derived}, **PUBLISHED)
    model = load_model(tmp_path, strict=True)
    assert_loaded(model, expected)
    assert model.skipped == {}


def test_what_the_caller_ignores_is_counted_too(tmp_path, expected, caplog):
    write(tmp_path, {**hub_names(expected), "adapter.weight": torch.zeros(5, dtype=torch.bool)})
    assert load_model(tmp_path, ignore_prefixes=["adapter."]).skipped == {"ignore_prefixes": SkippedPart(1, 5)}
    assert "ignore_prefixes (1 tensors, 0.0 MiB)" in caplog.text
    caplog.clear()
    write(tmp_path, hub_names(expected))
    assert load_model(tmp_path).skipped == {} and not caplog.records


def test_no_name_of_the_text_model_is_another_parts(expected):
    for name in (*expected, *hub_names(expected), *fuse_qkv(hub_names(expected), 1)):
        assert other_part(text_name(name)) is None and text_name(name) == name


def test_fields_of_a_nested_text_config():
    config = ModelConfig.from_dict(CONFIG)
    outer = {
        **PUBLISHED,
        "model_type": "mimo_v2_omni",
        "architectures": ["MiMoV2OmniForCausalLM"],
        "eos_token_id": [1, 2],
    }
    parsed = ModelConfig.from_dict({**outer, "text_config": CONFIG})
    assert parsed.eos_token_ids == (1, 2) and parsed.layer_kinds == config.layer_kinds
    inner = {f: v for f, v in CONFIG.items() if f != "model_type"}
    assert ModelConfig.from_dict({**PUBLISHED, "model_type": "mimo_v2", "text_config": inner}) == config
    assert ModelConfig.from_dict({**CONFIG, "text_config": None, **PUBLISHED}) == config
    unscaled = {**CONFIG, "attention_value_scale": None}  # said to be none, which is not the same as not said
    assert ModelConfig.from_dict({"text_config": unscaled}).value_scale == 1
    assert ModelConfig.from_dict({"text_config": unscaled, "attention_value_scale": 0.5}).value_scale == 0.5
    with pytest.raises(ConfigError, match=r"hidden_size = 64 and text_config.hidden_size = 32 disagree"):
        ModelConfig.from_dict({"hidden_size": 64, "text_config": CONFIG})
    with pytest.raises(ConfigError, match=r"model_type must be 'mimo_v2_flash' or 'mimo_v2', got 'qwen3'"):
        ModelConfig.from_dict({"model_type": "mimo_v2", "text_config": {**CONFIG, "model_type": "qwen3"}})
    with pytest.raises(ConfigError, match=r"text_config must be an object, got \[\]"):
        ModelConfig.from_dict({**CONFIG, "text_config": []})
    with pytest.raises(ConfigError, match=r"unknown fields visionary, vit"):
        ModelConfig.from_dict({**CONFIG, "vit": 1, "visionary": 1})
