"""`config.json` from somebody else: whatever is in it, the answer is a configuration or one line that names the field."""

import json
import os
import random

import pytest
import torch
from checkpoints import CONFIG, QUANTIZATION
from test_config import HUB, TRANSFORMERS

from swa_attn.runner import ConfigError, ModelConfig
from swa_attn.runner.config import _WITHOUT_EFFECT
from swa_attn.runner.fields import Fields
from swa_attn.runner.json_file import MOST_CONFIG_BYTES

QUANTISED = {**HUB, "quantization_config": {**QUANTIZATION, "ignored_layers": []}}
BOTH = {**TRANSFORMERS, **QUANTISED, "rope_parameters": TRANSFORMERS["rope_parameters"]}
BOTH |= {"dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "default"}, "mlp_bias": False}
BOTH |= {"use_qk_norm": False, "first_k_dense_replace": 0, "attention_projection_layout": "split"}
BOTH |= {"n_shared_experts": 0, "routed_scaling_factor": 2.5}

HUGE = 10**12
WORDS = ("", "abc", "\ud800", [], ["a"], {}, {"a": 1}, True)
NUMBERS = (-1, 0, HUGE, 10**400, 1.5, float("nan"), float("inf"), -float("inf"))
BAD_SIZES = (*WORDS, *NUMBERS)
BAD_POSITIVE = (*WORDS, -1, 0, 10**400, 1e39, float("nan"), float("inf"), -float("inf"))
BAD_SHARES = (*WORDS, -0.5, 1.5, 10**400, float("nan"), float("inf"))
BAD_FLAGS = ("", "true", 0, 1, 1.0, [], {}, [True])
BAD_NAMES = (0, 1, True, 1.5, "abc", "", [], {}, ["default"])
BAD_LISTS = (
    "abc",
    True,
    1.5,
    {},
    [],
    [0],
    [0] * 3,
    [0] * 5,
    [0, 1, 1, 2],
    [0, True, 1, 0],
    [0, 1.0, 1, 0],
    [0, [], 1, 0],
)
BAD_IDS = ("abc", "", -1, 128, HUGE, True, 1.5, {}, [3, "a"], [3, -1], [[3]], [True], [3, 128])
BAD_OBJECTS = ("abc", 1, True, [], [1], {"unheard_of": 1})
BAD_THETAS = [{**TRANSFORMERS["rope_parameters"], "full_attention": {"rope_theta": bad}} for bad in BAD_POSITIVE]

SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim v_head_dim "
    "swa_num_attention_heads swa_num_key_value_heads swa_head_dim swa_v_head_dim sliding_window_size sliding_window "
    "n_routed_experts num_experts_per_tok moe_intermediate_size n_group topk_group max_position_embeddings"
)
POSITIVE = "rms_norm_eps layernorm_epsilon rope_theta swa_rope_theta attention_value_scale routed_scaling_factor"
FLAGS = (
    "tie_word_embeddings norm_topk_prob add_swa_attention_sink_bias add_full_attention_sink_bias "
    "attention_bias mlp_bias use_qk_norm"
)
NAMES = "model_type hidden_act scoring_func topk_method attention_projection_layout dtype torch_dtype"

BAD = {  # field -> values that it must not have, where the rest is BOTH
    **dict.fromkeys(SIZES.split(), BAD_SIZES),
    **dict.fromkeys(POSITIVE.split(), BAD_POSITIVE),
    **dict.fromkeys(FLAGS.split(), BAD_FLAGS),
    **dict.fromkeys(NAMES.split(), BAD_NAMES),
    "partial_rotary_factor": BAD_SHARES,
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace"), (False, 1, "0", 0.0, [], {})),
    "hybrid_layer_pattern": (*BAD_LISTS, 1),
    "moe_layer_freq": (*BAD_LISTS, 0, -1, HUGE),
    "layer_types": (*BAD_LISTS, 1, ["full_attention"] * 3, ["full_attention", "chunked_attention"] * 2),
    "mlp_layer_types": (*BAD_LISTS, 1, ["dense"] * 3, ["dense", "shared"] * 2),
    "eos_token_id": BAD_IDS,
    "rope_scaling": (*BAD_OBJECTS, {"type": "yarn"}, {"rope_type": 1}, {"rope_type": "default", "factor": 4}),
    "rope_parameters": (
        *BAD_OBJECTS,
        *BAD_THETAS,
        {"full_attention": "default"},
        {"full_attention": {"rope_type": "llama3"}},
        {"full_attention": {"partial_rotary_factor": 2}},
        {"full_attention": {"mrope_section": [1, 2]}},
        {**TRANSFORMERS["rope_parameters"], "chunked_attention": {"rope_theta": 1e4}},
    ),
    "quantization_config": (
        *BAD_OBJECTS,
        {"quant_method": "awq"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        *(
            {**QUANTIZATION, "weight_block_size": b}
            for b in ("ab", [1], [1, 0], [True, 1], [1.0, 1], [1, 2, 3], 16, None)
        ),
        {**QUANTIZATION, "store_dtype": "mxfp4"},
        {**QUANTIZATION, "fmt": "e5m2"},
        {**QUANTIZATION, "activation_scheme": "static"},
    ),
    "text_config": ("abc", 1, True, [], [1], {"hidden_size": 128}, {"unheard_of": 1}),
}


def is_one_line(error):
    message = str(error)
    return message.isprintable() and len(message) < 4000


def test_the_table_starts_from_a_valid_file_and_has_every_field(monkeypatch):
    asked = set()
    get = Fields.get
    monkeypatch.setattr(Fields, "get", lambda self, f, *d: asked.add(self.prefix + f) or get(self, f, *d))
    config = ModelConfig.from_dict(BOTH)
    assert config.moe is not None and config.weight_block_size == (16, 16) and config.dtype == torch.bfloat16
    assert {field for field in asked if "." not in field} == set(BAD)


@pytest.mark.parametrize("field", BAD)
def test_every_field_refuses_what_it_cannot_be(field):
    for bad in BAD[field]:
        with pytest.raises(ConfigError) as caught:
            ModelConfig.from_dict({**BOTH, field: bad})
        assert is_one_line(caught.value), bad
        assert field in str(caught.value) or "unheard_of" in str(caught.value), (bad, caught.value)


def test_fields_without_effect_are_not_looked_at():
    changed = dict(zip(sorted(_WITHOUT_EFFECT), WORDS * 9, strict=False))
    assert ModelConfig.from_dict({**BOTH, **changed}) == ModelConfig.from_dict(BOTH)


LIMITS = {"hidden_size": 24, "num_attention_heads": 16, "head_dim": 16, "num_hidden_layers": 10, "n_routed_experts": 14}
LIMITS |= {"moe_intermediate_size": 20, "max_position_embeddings": 30}


@pytest.mark.parametrize("field", LIMITS)
def test_sizes_end_where_no_model_is(field):
    most = 1 << LIMITS[field]
    with pytest.raises(ConfigError, match=f"{field} must be at most {most}, got {most + 1}"):
        ModelConfig.from_dict({**BOTH, field: most + 1})


def test_the_largest_sizes_do_not_overflow():
    """A model of the largest sizes can be described: what is allocated is decided by comparing it with the checkpoint."""
    from swa_attn.runner.models import MiMoForCausalLM

    most = {"vocab_size": 1 << 24, "hidden_size": 1 << 24, "intermediate_size": 1 << 24, "num_attention_heads": 1 << 16}
    most |= {"num_key_value_heads": 1 << 16, "swa_num_key_value_heads": 1 << 16, "head_dim": 1 << 16}
    most |= {"v_head_dim": 1 << 16, "n_routed_experts": 1 << 14, "moe_intermediate_size": 1 << 20}
    most |= {"num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1]}
    with torch.device("meta"):
        model = MiMoForCausalLM(ModelConfig.from_dict({**CONFIG, **most}))
    assert sum(p.numel() for p in model.parameters()) > 1 << 60


TEXTS = {
    "empty": (b"", "is not JSON"),
    "not JSON": (b"{'a': 1}", "is not JSON"),
    "a trailing comma": (b'{"a": 1,}', "is not JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON: 'utf-8' codec can't decode byte 0xff in position 7"),
    "a list": (b"[]", r"must hold a JSON object, got \[\]"),
    "a number": (b"1", "must hold a JSON object, got 1"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "deep lists": (b'{"a":' + b"[" * 200_000, "nested too deeply"),
    "NaN": (b'{"rms_norm_eps": NaN}', "holds 'NaN', which is not a finite number"),
    "an infinity": (b'{"rms_norm_eps": -Infinity}', "holds '-Infinity', which is not a finite number"),
    "a large exponent": (b'{"rms_norm_eps": 1e999}', "holds '1e999', which is not a finite number"),
    "a long integer": (b'{"rms_norm_eps": ' + b"9" * 10_000 + b"}", "is not JSON: Exceeds the limit"),
    "twice": (b'{"vocab_size": 1, "vocab_size": 2}', "names the field 'vocab_size' twice"),
    "twice inside": (b'{"rope_parameters": {"a": 1, "a": 1}}', "names the field 'a' twice"),
    "too long": (b" " * (MOST_CONFIG_BYTES + 1), f"has more than {MOST_CONFIG_BYTES} bytes"),
    "a field with a new line": (b'{"model_type": "mimo_v2", "\\n\\u0007": 1}', None),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_files_that_are_no_json_object(tmp_path, name, case):
    text, message = TEXTS[case]
    (tmp_path / "config.json").write_text(json.dumps(HUB))
    (tmp_path / name).write_bytes(text)
    if message is None and name == "generation_config.json":
        assert ModelConfig.from_file(tmp_path) == ModelConfig.from_dict(HUB)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_file(tmp_path)
    assert name in str(caught.value) and is_one_line(caught.value)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "config.json")  # opening it would wait for ever
    with pytest.raises(ConfigError, match=r"config.json is not a regular file"):
        ModelConfig.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config.json is not a regular file"):
        ModelConfig.from_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        ModelConfig.from_file(tmp_path / "nothing")


@pytest.mark.parametrize("raw", [None, 1, "abc", [], [1], True])
def test_what_is_no_object_of_fields(raw):
    with pytest.raises(ConfigError, match=r"config.json: the file must be an object, got"):
        ModelConfig.from_dict(raw)


def test_messages_stay_short():
    nested = 1
    for _ in range(20_000):
        nested = [nested]
    for bad in ("x" * 10**5, [0] * 10**5, nested, {str(i): i for i in range(10**4)}, 10**3000):
        for field in ("vocab_size", "hybrid_layer_pattern", "rope_parameters", "x" * 1000):
            with pytest.raises(ConfigError) as caught:
                ModelConfig.from_dict({**HUB, field: bad})
            assert is_one_line(caught.value)
    while isinstance(nested, list):  # freed one by one: freeing the whole recurses
        nested = nested.pop()


VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    128,
    1 << 31,
    1 << 63,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e308,
    "",
    "abc",
    "\n",
    [],
    {},
]


def mutate(value, chance):
    """The value, or a copy with some place in it changed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        changed = dict(value)
        for key in chance.sample(sorted(value), min(len(value), chance.choice((1, 1, 2, 5)))):
            kind = chance.randrange(8)
            if kind == 0:
                del changed[key]
            elif kind == 1:
                changed[chance.choice(sorted(value)) + chance.choice(("", "_x", "s"))] = changed.pop(key)
            else:
                changed[key] = mutate(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.6:
        changed = list(value)
        changed[chance.randrange(len(changed))] = chance.choice(VALUES)
        return changed[: chance.choice((None, None, -1))] + [chance.choice(VALUES)] * chance.choice((0, 0, 1))
    return chance.choice((chance.choice(VALUES), [value], {"a": value}, [value] * 4))


def fuzz_fields(seeds):
    outcomes = {"read": 0, "refused": 0}
    for seed in seeds:
        chance = random.Random(seed)
        raw = mutate(chance.choice((HUB, TRANSFORMERS, BOTH, {"text_config": HUB, "model_type": "mimo_v2"})), chance)
        try:
            config = ModelConfig.from_dict(raw)
        except ConfigError as error:
            assert is_one_line(error), seed
            outcomes["refused"] += 1
        else:
            assert config.kv_groups() and hash(config) is not None
            outcomes["read"] += 1
    return outcomes


def fuzz_bytes(folder, seeds):
    path = folder / "config.json"
    original = json.dumps(HUB).encode()
    for seed in seeds:
        chance = random.Random(seed)
        text = bytearray(original)
        for _ in range(chance.choice((1, 1, 3, 10))):
            start = chance.randrange(len(text))
            text[start : start + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
        path.write_bytes(text)
        try:
            ModelConfig.from_file(path)
        except ConfigError as error:
            assert is_one_line(error), seed


def test_mutated_fields_are_read_or_refused():
    outcomes = fuzz_fields(range(1500))
    assert outcomes["read"] > 50 and outcomes["refused"] > 500, outcomes


def test_mutated_bytes_are_read_or_refused(tmp_path):
    fuzz_bytes(tmp_path, range(300))


@pytest.mark.slow
def test_mutations_for_longer(tmp_path):
    fuzz_fields(range(10_000, 40_000))
    fuzz_bytes(tmp_path, range(10_000, 20_000))
