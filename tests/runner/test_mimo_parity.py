"""Our MiMo runner against transformers' own `mimo_v2_flash`: float32, eager, tiny random weights."""

import dataclasses

import pytest
import torch
from mimo_tiny import PAGE_SIZE, PagedRunner, hf_config, hf_model

import swa_attn
from swa_attn import native
from swa_attn.runner import load_model

pytest.importorskip("transformers.models.mimo_v2_flash", reason="transformers is the oracle of these tests")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

TOLERANCE = 1e-4
SIZES = (128, 8)  # sliding_window_size: 129 and 9 visible keys
LENGTHS = {128: 300, 8: 60}


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request):
    if request.param == "cpu" and native.unavailable():
        pytest.skip(f"backend cpu: {native.unavailable()}")
    with swa_attn.use_backend(request.param):
        yield request.param


class Pair:
    """The same weights in transformers' model and in ours, loaded from what transformers saved."""

    def __init__(self, size: int, directory) -> None:
        self.hf = hf_model(hf_config(size))
        self.hf.save_pretrained(directory)
        self.ours = load_model(directory)
        self.tokens = torch.randint(0, 96, (LENGTHS[size],), generator=torch.Generator().manual_seed(7))
        self.expected = self.oracle(self.tokens)

    @torch.no_grad()
    def oracle(self, tokens):
        return self.hf(tokens[None]).logits[0]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    torch.manual_seed(0)
    return {size: Pair(size, tmp_path_factory.mktemp(f"mimo{size}")) for size in SIZES}


@pytest.fixture(params=SIZES, ids=lambda size: f"window{size + 1}")
def pair(request, pairs):
    return pairs[request.param]


def error(logits, expected):
    return (logits - expected).abs().max().item()


def assert_same(logits, expected):
    assert error(logits, expected) <= TOLERANCE
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_the_pair_covers_every_feature(pair):
    config = pair.ours.config
    assert {"full", "swa"} == set(config.layer_kinds) and {True, False} == set(config.moe_layers)
    assert config.swa.window < len(pair.tokens) and config.swa.num_kv_heads == 2 * config.full.num_kv_heads
    assert config.swa.sinks and not config.full.sinks and config.value_scale == 0.707
    assert config.full.rope_theta != config.swa.rope_theta and config.full.rotary_dim == 8


def test_full_prompt(pair):
    runner = PagedRunner(pair.ours)
    assert_same(runner.step((runner.start(), pair.tokens))[0], pair.expected)


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [
        (8, 1),
        (8, 2),
        (8, 7),
        (8, 8),
        (8, 9),
        (8, 10),
        (8, 17),
        (128, 127),
        (128, 128),
        (128, 129),
        (128, 130),
        (128, 48),
    ],
)
def test_chunked_prefill(pairs, size, chunk_size):
    runner = PagedRunner(pairs[size].ours)
    assert_same(runner.run(runner.start(), pairs[size].tokens, chunk_size), pairs[size].expected)


def test_decode_steps_and_greedy_tokens(pair):
    runner, steps = PagedRunner(pair.ours), 12
    sequence = runner.start()
    prompt = pair.tokens[:-5]
    logits = [runner.run(sequence, prompt, 64)[-1:]]
    generated = [logits[-1].argmax().item()]
    for _ in range(steps - 1):
        logits.append(runner.run(sequence, torch.tensor(generated[-1:]), 1))
        generated.append(logits[-1].argmax().item())
    with torch.no_grad():
        theirs = pair.hf.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=steps, do_sample=False
        )
    assert generated == theirs[0, len(prompt) :].tolist()
    whole = pair.oracle(torch.cat([prompt, torch.tensor(generated)]))
    assert_same(torch.cat(logits), whole[len(prompt) - 1 : -1])


@pytest.mark.parametrize("prefix_pages", [1, 2])
def test_resumed_from_cached_pages(pair, prefix_pages):
    """A second prompt shares pages with the first, whose own windowed pages are already gone except the snapshot's."""
    runner = PagedRunner(pair.ours)
    window = pair.ours.config.swa.window
    prefix = -(-window // PAGE_SIZE) * PAGE_SIZE + prefix_pages * PAGE_SIZE
    first = runner.start()
    runner.run(first, pair.tokens, 64, release=False)
    resumed = runner.start(first, prefix)
    assert resumed.tables["swa"][0] == -1 and resumed.tables["full"][0] == first.tables["full"][0]
    own = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(8))
    logits = runner.run(resumed, own, 23)
    assert_same(logits, pair.oracle(torch.cat([pair.tokens[:prefix], own]))[prefix:])


def test_prefill_and_decode_of_several_sequences_in_one_step(pair):
    runner = PagedRunner(pair.ours)
    split = len(pair.tokens) // 2
    early, late = runner.start(), runner.start()
    runner.run(early, pair.tokens[:split], 64)
    other = pair.tokens.flip(0)
    got = runner.step((late, other[:33]), (early, pair.tokens[split : split + 1]))
    assert_same(got[0], pair.oracle(other[:33]))
    assert_same(got[1], pair.expected[split : split + 1])
    got = runner.step(
        (late, other[33:37]), (early, pair.tokens[split + 1 : split + 5])
    )  # four tokens each: the decode op
    assert_same(got[0], pair.oracle(other[:37])[33:])
    assert_same(got[1], pair.expected[split + 1 : split + 5])


def test_only_the_rows_asked_for(pair):
    rows = torch.tensor([0, len(pair.tokens) - 1])
    runner = PagedRunner(pair.ours)
    original = pair.ours.forward
    logits = None

    def with_rows(*args):
        nonlocal logits
        logits = original(*args, logits_rows=rows)
        return logits.new_zeros(len(pair.tokens), 1)

    runner.model = with_rows
    runner.step((runner.start(), pair.tokens))
    assert logits.dtype == torch.float32
    assert_same(logits, pair.expected[rows])


def changed(model, **changes):
    """The same weights under another config."""
    from swa_attn.runner.models import MiMoForCausalLM

    other = MiMoForCausalLM(dataclasses.replace(model.config, **changes))
    weights = model.state_dict()
    other.load_state_dict({name: weights[name] for name in other.state_dict()})
    return other


@pytest.mark.parametrize("control", ["window - 1", "window + 1", "no sinks", "no value scale", "swapped thetas"])
def test_controls_fail_the_same_tolerance(pair, control):
    config = pair.ours.config
    swa = {
        "window - 1": dataclasses.replace(config.swa, window=config.swa.window - 1),
        "window + 1": dataclasses.replace(config.swa, window=config.swa.window + 1),
        "no sinks": dataclasses.replace(config.swa, sinks=False),
        "swapped thetas": dataclasses.replace(config.swa, rope_theta=config.full.rope_theta),
    }.get(control, config.swa)
    wrong = changed(pair.ours, swa=swa, value_scale=1.0 if control == "no value scale" else config.value_scale)
    runner = PagedRunner(wrong)
    assert error(runner.step((runner.start(), pair.tokens))[0], pair.expected) > 100 * TOLERANCE


@pytest.mark.parametrize("changes", [{"n_group": 1, "topk_group": 1}, {"norm_topk_prob": False}], ids=str)
def test_other_routings(tmp_path, changes):
    hf = hf_model(hf_config(8, **changes))
    hf.save_pretrained(tmp_path)
    runner = PagedRunner(load_model(tmp_path))
    tokens = torch.arange(40)
    with torch.no_grad():
        assert_same(runner.step((runner.start(), tokens))[0], hf(tokens[None]).logits[0])


def test_tied_embeddings(tmp_path):
    hf = hf_model(hf_config(8, tie_word_embeddings=True))
    hf.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.lm_head is None
    runner = PagedRunner(ours)
    tokens = torch.arange(40)
    with torch.no_grad():
        assert_same(runner.step((runner.start(), tokens))[0], hf(tokens[None]).logits[0])


def test_bfloat16_is_about_as_close_to_float32_as_transformers(tmp_path):
    hf = hf_model(hf_config(8))
    hf.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    runner, tokens = PagedRunner(ours), torch.arange(60)
    with torch.no_grad():
        exact = hf(tokens[None]).logits[0]
        theirs = hf.to(torch.bfloat16)(tokens[None]).logits[0].float()
    got = runner.step((runner.start(), tokens))[0]
    assert got.dtype == torch.float32
    assert (got - exact).square().mean() <= 4 * (theirs - exact).square().mean()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_keeps_the_same_parameters_in_float32(tmp_path, stored):
    """In a bfloat16 model, whatever the file holds; and both send the tokens to the same experts."""
    from transformers import MiMoV2FlashForCausalLM

    saved = hf_model(hf_config(8)).to(stored)
    saved.save_pretrained(tmp_path)
    theirs = MiMoV2FlashForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    named = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    kept = {name for name, p in ours.named_parameters() if p.dtype == torch.float32}
    assert len(kept) == 2 * sum(ours.config.moe_layers)
    for name, p in ours.named_parameters():
        other = named[name.replace("attn.sinks", "sinks")]
        assert p.dtype == other.dtype and torch.equal(p, other), name
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(2)).bfloat16()
    for mine, other in zip(ours.model.layers, theirs.model.layers, strict=True):
        if hasattr(mine.mlp, "gate"):
            experts, weights = mine.mlp.gate(x)
            _, their_weights, their_experts = other.mlp.gate(x)
            order, their_order = experts.argsort(1), their_experts.argsort(1)
            assert torch.equal(experts.gather(1, order), their_experts.gather(1, their_order))
            assert torch.allclose(weights.gather(1, order), their_weights.gather(1, their_order), rtol=1e-6)
