"""The name of a model that nobody named: it changes with everything that decides K and V, and only a store costs it."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from chain_model import ChainModel
from mimo_tiny import hf_config, randomise
from torch import nn

from swa_attn.kvcache import KVCache, LowerTiers, Planner, Tier
from swa_attn.kvcache.store import SlabOptions, SlabStore
from swa_attn.runner import Engine, ModelConfig, SamplingParams, fingerprint, model_fingerprint
from swa_attn.runner.models import MiMoForCausalLM

CONFIG = ModelConfig.from_dict(hf_config(5).to_dict())
PAGE_SIZE = 4
PARAMS = SamplingParams(max_tokens=6)


def tiny(seed: int = 0, config: ModelConfig = CONFIG) -> MiMoForCausalLM:
    return randomise(MiMoForCausalLM(config), seed)


class Plain(nn.Module):
    """Every form in which a tensor may be there."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"theta": 1e4, "layers": ["full", "swa"], "eps": None, "dtype": torch.bfloat16, 3: {1, 2}}
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.narrow = nn.Parameter(torch.randn(5, generator=generator).bfloat16())
        self.scaled = nn.Parameter(torch.randn(3, 3, generator=generator).to(torch.float8_e4m3fn), requires_grad=False)
        self.transposed = nn.Parameter(torch.randn(4, 6, generator=generator).t())
        self.empty = nn.Parameter(torch.empty(0, 7))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("table", torch.arange(5))
        self.register_buffer("passing", torch.tensor([True, False]), persistent=False)


def test_the_name_is_the_same_wherever_the_same_numbers_lie():
    model = Plain()
    name = model_fingerprint(model)
    assert name == model_fingerprint(copy.deepcopy(model)) == model_fingerprint(model, threads=1)
    with torch.no_grad():
        model.transposed.data = model.transposed.detach().contiguous()
        model.w.data = torch.stack([model.w, -model.w], -1)[..., 0]
    assert not model.w.is_contiguous() and model_fingerprint(model) == name
    model.config = dict(reversed(model.config.items()))
    assert model_fingerprint(model) == name


def flip_last_bit(model, name):
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
    flat = tensor.detach().reshape(-1).clone()
    flat.view(torch.uint8)[-1] ^= 1
    tensor.data = flat.reshape(tensor.shape)


TENSORS = ("w", "narrow", "scaled", "transposed", "scalar", "table", "passing")
CHANGES = {
    **{f"last bit of {n}": lambda m, n=n: flip_last_bit(m, n) for n in TENSORS},
    "order of elements": lambda m: setattr(m, "w", nn.Parameter(m.w.detach().flip(0))),
    "shape": lambda m: setattr(m, "w", nn.Parameter(m.w.detach().reshape(4, 6))),
    "dtype": lambda m: setattr(m, "narrow", nn.Parameter(m.narrow.detach().view(torch.float16))),
    "name": lambda m: (setattr(m, "v", m.w), delattr(m, "w")),
    "one more": lambda m: m.register_buffer("more", torch.empty(0)),
    "one less": lambda m: delattr(m, "empty"),
    "config value": lambda m: m.config.update(theta=1e4 + 1e-9),
    "config type": lambda m: m.config.update(eps=0),
    "config key": lambda m: m.config.update(more=None),
    "config nested": lambda m: m.config["layers"].reverse(),
    "config set": lambda m: m.config[3].add(3),
    "config dtype": lambda m: m.config.update(dtype=torch.float16),
    "config text": lambda m: m.config.update(dtype="torch.bfloat16"),
    "class": lambda m: setattr(m, "__class__", type("Other", (Plain,), {})),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_has_another_name(change):
    model = Plain()
    before = model_fingerprint(model)
    CHANGES[change](model)
    assert model_fingerprint(model) != before


def test_large_tensors_are_read_in_pieces(monkeypatch):
    model = Plain()
    monkeypatch.setattr(fingerprint, "_PIECE_BYTES", 8)
    names = [model_fingerprint(model, threads=threads) for threads in (1, 2, 5)]
    assert len(set(names)) == 1
    flip_last_bit(model, "w")
    assert model_fingerprint(model) != names[0]


def test_a_real_model_and_each_field_of_its_configuration():
    model = tiny()
    names = {model_fingerprint(model), model_fingerprint(tiny(seed=1))}
    for field in dataclasses.fields(CONFIG):
        value = getattr(CONFIG, field.name)
        if isinstance(value, float):
            model.config = dataclasses.replace(CONFIG, **{field.name: value * 1.5})
        elif field.name in ("full", "swa"):
            model.config = dataclasses.replace(CONFIG, **{field.name: dataclasses.replace(value, rope_theta=7.0)})
        else:
            continue
        names.add(model_fingerprint(model))
    assert len(names) >= 5
    # transformers' configurations too
    model.config = hf_config(5)
    assert model_fingerprint(model) not in names


@pytest.mark.parametrize(
    "model, why",
    [
        (ChainModel((None, 5)), "it has no config"),
        (SimpleNamespace(config={}), "it has no parameters"),
        (nn.Linear(2, 2), "it has no config"),
    ],
)
def test_what_cannot_be_named_is_refused_in_one_line(model, why):
    with pytest.raises(
        ValueError, match=rf"Engine: give fingerprint= to use a store with {type(model).__name__}.*{why}"
    ) as raised:
        model_fingerprint(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("tensor", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()])
def test_weights_without_bytes_are_refused(tensor):
    model = Plain()
    model.register_buffer("odd", tensor)
    with pytest.raises(ValueError, match=r"Engine: give fingerprint= .*odd is no tensor with bytes of its own"):
        model_fingerprint(model)
    del model.odd
    model.config["hook"] = object()
    with pytest.raises(ValueError, match=r"Engine: give fingerprint= .*a object is no value of a configuration"):
        model_fingerprint(model)


class MostReuse(Planner):
    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


def engine(model, store=None, **options) -> Engine:
    disk = {} if store is None else {"store": store, "disk_bytes": 4 << 20}
    lower = LowerTiers({"full": 40, "swa": 40}, **disk)
    planner = MostReuse(rebuild=False, deadline=60.0)
    pages = {"full": 60, "swa": 60}
    return Engine(
        model, CONFIG.kv_groups(), page_size=PAGE_SIZE, num_pages=pages, lower=lower, planner=planner, **options
    )


@pytest.fixture
def store(tmp_path):
    layout, sizes = KVCache.store_layout(CONFIG.kv_groups(), PAGE_SIZE, torch.float32)
    options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    with SlabStore(tmp_path, options, namespace=b"our deployment", layout=layout) as opened:
        yield opened


def served(model, store, prompt, **options):
    """The completion, and everything written below before the engine ends."""
    with engine(model, store, **options) as opened:
        (done,) = opened.generate([prompt], PARAMS)
        while opened.cache.num_pending:
            opened.cache.poll(timeout=10)
        return done


def test_two_checkpoints_on_one_store_do_not_meet(store):
    prompt = list(range(33))
    base, tuned = tiny(0), tiny(1)
    cold = [served(model, None, prompt).tokens for model in (base, tuned)]
    assert cold[0] != cold[1]
    for _ in range(2):
        for model, tokens in zip((base, tuned), cold):
            assert served(model, store, prompt).tokens == tokens
    # Each found its own, also under a copy of the weights in another object.
    done = served(tiny(1), store, prompt)
    assert done.usage.cached_by_tier == {Tier.DISK: 32} and done.tokens == cold[1]
    changed = tiny(1, dataclasses.replace(CONFIG, value_scale=CONFIG.value_scale * 2))
    assert served(changed, store, prompt).usage.cached_tokens == 0


def test_a_secret_key_separates_what_is_on_one_store(store):
    prompt, model = list(range(33)), tiny()
    served(model, store, prompt, hash_key=b"k" * 16)
    assert served(model, store, prompt).usage.cached_tokens == 0
    assert served(model, store, prompt, hash_key=b"k" * 16).usage.cached_tokens == 32


def test_nothing_is_read_without_a_store_or_with_a_name(store, monkeypatch):
    monkeypatch.setattr(fingerprint, "model_fingerprint", lambda *_: pytest.fail("the weights were read"))
    with engine(tiny()) as opened:
        assert opened.cache.fingerprint == ""
    with engine(tiny(), store, fingerprint="by hand") as opened:
        assert opened.cache.fingerprint == "by hand"
    with engine(ChainModel((None, 5))):
        pass


def test_an_engine_refuses_a_store_for_what_has_no_name(store):
    with pytest.raises(ValueError, match="Engine: give fingerprint= to use a store with ChainModel"):
        engine(ChainModel((None, 5)), store)
    with pytest.raises(ValueError, match="KVCache: fingerprint must name the model above a store"):
        engine(tiny(), store, fingerprint="")
    with pytest.raises(TypeError, match="KVCache: fingerprint must be a str, got bytes"):
        engine(tiny(), store, fingerprint=b"model")


def test_new_weights_above_a_store_are_named_by_themselves(store):
    """In place or as another model: nothing of the old weights is served, and it is found again under the old ones."""
    prompt = list(range(33))
    cold = {seed: served(tiny(seed), None, prompt).tokens for seed in (0, 1)}
    with engine(tiny(0), store) as opened:
        (first,) = opened.generate([prompt], PARAMS)
        for seed in (1, 0):
            opened.update_weights(tiny(seed))
            assert opened.cache.fingerprint == model_fingerprint(tiny(seed))
            (done,) = opened.generate([prompt], PARAMS)
            assert done.tokens == cold[seed]
        assert first.tokens == cold[0] and done.usage.cached_tokens > 0
        with pytest.raises(ValueError, match="fingerprint must be a new one"):
            opened.update_weights()
        flip_last_bit(opened.model, next(name for name, _ in opened.model.named_parameters()))
        opened.update_weights()
        assert opened.cache.fingerprint == model_fingerprint(opened.model) != model_fingerprint(tiny(0))
        assert opened.generate([prompt], PARAMS)[0].usage.cached_tokens == 0
