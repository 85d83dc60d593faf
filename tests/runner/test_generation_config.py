"""`generation_config.json`: united with the config, and the defaults of a request."""

import json

import pytest
from checkpoints import CONFIG, hub_names, random_parameters, write

from swa_attn.runner import ConfigError, Engine, GenerationConfig, ModelConfig, SamplingParams, load_model

pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

PUBLISHED = {
    "bos_token_id": 1,
    "eos_token_id": [7, 5],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.05,
    "max_new_tokens": 300,
    "transformers_version": "5.0",
}


def folder_with(tmp_path, generation, **config):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def test_all_fields(tmp_path):
    generation = GenerationConfig.from_folder(folder_with(tmp_path, PUBLISHED))
    assert generation == GenerationConfig((7, 5), True, 0.6, 20, 0.95, 0.05, 300, ())
    assert SamplingParams.from_generation_config(generation) == SamplingParams(300, 0.6, 20, 0.95, 0.05)
    changed = SamplingParams.from_generation_config(generation, max_tokens=4, top_k=None, seed=1)
    assert changed == SamplingParams(4, 0.6, None, 0.95, 0.05, 1)


@pytest.mark.parametrize("do_sample", [{}, {"do_sample": False}, {"do_sample": None}], ids=str)
def test_without_do_sample_it_is_greedy(do_sample):
    raw = {**{f: v for f, v in PUBLISHED.items() if f != "do_sample"}, **do_sample}
    params = SamplingParams.from_generation_config(GenerationConfig.from_dict(raw))
    assert params.greedy and params.max_tokens == 300
    warm = SamplingParams.from_generation_config(GenerationConfig.from_dict(raw), temperature=0.5)
    assert (warm.temperature, warm.top_k, warm.top_p) == (0.5, 20, 0.95)


def test_a_folder_without_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": 3}))
    assert GenerationConfig.from_folder(tmp_path) == GenerationConfig()
    assert ModelConfig.from_file(tmp_path).eos_token_ids == (3,)
    assert SamplingParams.from_generation_config(GenerationConfig()) == SamplingParams()


@pytest.mark.parametrize(
    ("config", "generation", "united"),
    [
        (3, 5, (3, 5)),
        (3, [5, 3, 7], (3, 5, 7)),
        ([3, 5], 5, (3, 5)),
        (None, [5, 7], (5, 7)),
        ([3, 3], None, (3,)),
        (None, None, ()),
        ([], [], ()),
        (39, 0, (39, 0)),
    ],
)
def test_end_tokens_are_united(tmp_path, config, generation, united):
    folder = folder_with(tmp_path, {"eos_token_id": generation}, eos_token_id=config)
    assert ModelConfig.from_file(folder).eos_token_ids == united
    assert ModelConfig.from_file(folder / "config.json").eos_token_ids == united
    (tmp_path / "other.json").write_text(json.dumps({**CONFIG, "eos_token_id": config}))
    alone = () if config is None else (config,) if isinstance(config, int) else tuple(dict.fromkeys(config))
    assert ModelConfig.from_file(tmp_path / "other.json").eos_token_ids == alone, "a file of another name stands alone"


@pytest.mark.parametrize("top_k", [0, None])
def test_no_top_k_keeps_all(top_k):
    assert GenerationConfig.from_dict({"top_k": top_k}).top_k is None


def test_transformers_reads_and_writes_it_alike(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this test")
    theirs = transformers.GenerationConfig(**{f: v for f, v in PUBLISHED.items() if f != "transformers_version"})
    theirs.save_pretrained(tmp_path)
    ours = GenerationConfig.from_folder(tmp_path)
    assert ours.not_applied == ()
    for field in ("do_sample", "temperature", "top_k", "top_p", "min_p", "max_new_tokens"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert list(ours.eos_token_ids) == theirs.eos_token_id


BAD = {
    "eos_token_id": ("abc", -1, True, 1.5, [3, "a"], [[3]], {}, 40, [3, 40], 10**12),
    "do_sample": (0, 1, "true", [], {}),
    "temperature": ("abc", -0.5, True, [], {}, 10**400, 1e39),
    "top_k": ("abc", -1, 1.5, True, [], 10**12),
    "top_p": ("abc", 0, -0.5, 1.5, True, [], {}),
    "min_p": ("abc", -0.5, 1.5, True, []),
    "max_new_tokens": ("abc", 0, -1, 1.5, True, 10**12, []),
}


@pytest.mark.parametrize("field", BAD)
def test_malformed_fields_are_named(tmp_path, field):
    for bad in BAD[field]:
        folder = folder_with(tmp_path, {**PUBLISHED, field: bad})
        with pytest.raises(ConfigError, match=f"^generation_config.json: {field} must be ") as caught:
            ModelConfig.from_file(folder)
        assert str(caught.value).isprintable()


def test_an_end_token_beyond_the_vocabulary(tmp_path):
    folder = folder_with(tmp_path, {"eos_token_id": [39, 40, 41]})
    with pytest.raises(
        ConfigError, match=r"^generation_config.json: eos_token_id must be below vocab_size = 40, got \[40, 41\]"
    ):
        ModelConfig.from_file(folder)


def test_what_the_sampler_does_not_have_is_said(tmp_path, caplog):
    write(tmp_path, hub_names(random_parameters()))
    wishes = {**PUBLISHED, "repetition_penalty": 1.05, "num_beams": 1, "no_repeat_ngram_size": 3, "length_penalty": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(wishes))
    assert load_model(tmp_path).generation.not_applied == ("no_repeat_ngram_size", "repetition_penalty")
    (record,) = caplog.records
    expected = (
        f"{tmp_path / 'generation_config.json'}: the sampler does not have: no_repeat_ngram_size, repetition_penalty"
    )
    assert record.getMessage() == expected


def test_the_engine_stops_at_either_files_tokens(tmp_path):
    """The greedy continuation is known: an end token of each file, in turn, cuts it."""
    write(tmp_path, hub_names(random_parameters()))

    def completion():
        model = load_model(tmp_path)
        engine = Engine(model, model.config.kv_groups(), cache_bytes=4 << 20, eos_token_ids=model.config.eos_token_ids)
        params = SamplingParams.from_generation_config(model.generation, max_tokens=12)
        return engine.generate([[1, 2, 3]], params)[0]

    whole = completion().tokens
    assert len(whole) == 12
    end = next(i for i, token in enumerate(whole) if i >= 2 and token not in whole[:i])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [whole[end]]}))
    cut = completion()
    assert cut.tokens == whole[: end + 1] and cut.finish_reason.value == "stop"
    write(tmp_path, hub_names(random_parameters()), eos_token_id=whole[0])
    assert completion().tokens == whole[:1]
