"""Windows rebuilt from full-attention pages are those of a run from the start, bit for bit where linear layers allow it."""

import pytest
import torch
from mimo_tiny import NAN, PAGE_SIZE, PagedRunner, hf_config, randomise

import swa_attn
from swa_attn import native
from swa_attn.kvcache import plan_rebuild
from swa_attn.runner import ModelConfig
from swa_attn.runner.models import MiMoForCausalLM

pytest.importorskip("transformers.models.mimo_v2_flash", reason="its config is what the tiny models are made from")

WINDOW = 20
LAYERS = ("full", "sliding", "sliding", "full", "sliding", "sliding", "full", "sliding", "full")


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request):
    if request.param == "cpu" and native.unavailable():
        pytest.skip(f"backend cpu: {native.unavailable()}")
    with swa_attn.use_backend(request.param):
        yield request.param


@pytest.fixture
def row_by_row(monkeypatch):
    """Linear layers whose rows do not depend on each other; the usual ones choose their loops by the number of rows."""
    linear = torch.nn.functional.linear

    def one_at_a_time(x, *weights):
        rows = [linear(row[None], *weights) for row in x.reshape(-1, x.shape[-1])]
        return torch.cat(rows).unflatten(0, x.shape[:-1]) if rows else linear(x, *weights)

    monkeypatch.setattr(torch.nn.functional, "linear", one_at_a_time)


def tiny_model() -> MiMoForCausalLM:
    config = hf_config(
        WINDOW,
        num_hidden_layers=len(LAYERS),
        layer_types=[f"{kind}_attention" for kind in LAYERS],
        mlp_layer_types=["dense"] * len(LAYERS),
    )
    model = MiMoForCausalLM(ModelConfig.from_dict(config.to_dict(), mimo_window="size_includes_self"))
    return randomise(model)


def windows(model):
    return [model.config.attention(i).window for i in range(model.config.num_layers)]


def contents(runner, sequence, end):
    """K and V of every windowed layer at the positions that a resume at `end` needs."""
    found = {}
    for group in runner.groups:
        if group.window is None:
            continue
        for layer in group.layers:
            for which, pages in zip("kv", runner.caches[layer], strict=True):
                slots = [
                    (sequence.tables[group.name][p // PAGE_SIZE], p % PAGE_SIZE)
                    for p in range(group.first_visible(end), end)
                ]
                found[layer, which] = torch.stack([pages[page, slot] for page, slot in slots])
    return found


def lose_windows(runner, sequence, keep_before=0):
    """Everything windowed is gone but what the window before `keep_before` needs; new pages, full of NaN, take its place."""
    group = next(g for g in runner.groups if g.window is not None)
    table = sequence.tables[group.name]
    first = group.first_visible(keep_before) // PAGE_SIZE if keep_before else 0
    for i in range(len(table)):
        if first <= i < keep_before // PAGE_SIZE:
            continue
        if table[i] >= 0:
            for layer in group.layers:
                for pages in runner.caches[layer]:
                    pages[table[i]] = NAN
            runner.free[group.name].insert(0, table[i])
        table[i] = runner.free[group.name].pop() if i * PAGE_SIZE >= keep_before else -1


def rebuilt(model, length, start=0):
    """(after a rebuild, before it, the runner, the sequence, the plan) of a sequence of `length` tokens."""
    tokens = torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(3))
    runner = PagedRunner(model)
    sequence = runner.start()
    runner.run(sequence, tokens, 37, release=False)
    before = contents(runner, sequence, length)
    full = {
        layer: [x.clone() for x in runner.caches[layer]]
        for g in runner.groups
        if g.window is None
        for layer in g.layers
    }
    lose_windows(runner, sequence, start)
    assert all(torch.isnan(x).any() for x in contents(runner, sequence, length).values())
    plan = plan_rebuild(windows(model), length, start)
    model.rebuild_windows(tokens[plan.first[0] : length], plan, runner.caches, sequence.tables, PAGE_SIZE)
    for layer, pages in full.items():
        for mine, theirs in zip(runner.caches[layer], pages, strict=True):
            assert torch.equal(mine.nan_to_num(-1), theirs.nan_to_num(-1))
    return contents(runner, sequence, length), before, runner, sequence, plan


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, 3 * WINDOW, 97, 5 * (WINDOW - 1), 160])
@torch.no_grad()
def test_rebuilt_windows_have_the_bits_of_a_run_from_the_start(row_by_row, length):
    after, before, *_ = rebuilt(tiny_model(), length)
    assert before.keys() == after.keys() and len(after) == 2 * LAYERS.count("sliding")
    assert all(torch.equal(after[key], before[key]) for key in before)


@torch.no_grad()
def test_with_usual_linear_layers_they_agree_to_rounding():
    """No further from a run from the start than four times what such runs with other chunks, or one rounding, differ by."""
    model = tiny_model()
    after, before, _, _, _ = rebuilt(model, 160)
    tokens = torch.randint(0, 96, (160,), generator=torch.Generator().manual_seed(3))
    noise = torch.finfo(torch.float32).eps * max(x.abs().max().item() for x in before.values())
    for chunk in (160, 61, 7):
        runner = PagedRunner(model)
        sequence = runner.start()
        runner.run(sequence, tokens, chunk, release=False)
        other = contents(runner, sequence, 160)
        noise = max(noise, *((other[key] - before[key]).abs().max().item() for key in before))
    assert noise < 1e-4
    assert max((after[key] - before[key]).abs().max() for key in before) <= 4 * noise


@pytest.mark.parametrize("start", [64, 128, 144])
@torch.no_grad()
def test_from_an_earlier_snapshot(row_by_row, start):
    after, before, *_, plan = rebuilt(tiny_model(), 160, start)
    assert plan.first[0] == max(start, 160 - LAYERS.count("sliding") * (WINDOW - 1))
    assert all(torch.equal(after[key], before[key]) for key in before)


@torch.no_grad()
def test_a_run_goes_on_from_a_rebuilt_window_as_if_nothing_had_happened(row_by_row):
    model = tiny_model()
    *_, runner, sequence, _ = rebuilt(model, 160)
    more = torch.randint(0, 96, (11,), generator=torch.Generator().manual_seed(4))
    cold = PagedRunner(model)
    tokens = torch.randint(0, 96, (160,), generator=torch.Generator().manual_seed(3))
    other = cold.start()
    cold.run(other, tokens, 160)
    assert torch.equal(runner.run(sequence, more, 4), cold.run(other, more, 4))


def test_the_plan_is_a_trapezoid():
    plan = plan_rebuild([None, 4, 4, None, 4, None], end=100)
    assert plan.first == (91, 91, 94, 97, 97, 100, 100) and plan.num_tokens == 9
    assert plan.token_equivalents == (9 + 6 + 3 + 3 + 0 + 0) / 6
    assert plan_rebuild([4, None], end=2).first == (0, 2, 2)
    assert plan_rebuild([None, 1, None], end=7).first == (7, 7, 7, 7)


@pytest.mark.parametrize("name, rectangle, published", [("mimo-v2.5-pro", 7620, 3780), ("mimo-v2.5", 39 * 127, 2453)])
def test_it_costs_half_of_replaying_every_layer(name, rectangle, published):
    """The published arithmetic counts W tokens per layer and keys and values, so it is a little larger."""
    config = ModelConfig.preset(name, mimo_window="size_includes_self")
    plan = plan_rebuild([config.attention(i).window for i in range(config.num_layers)], 1 << 20)
    assert plan.num_tokens == rectangle
    assert 0.95 * published < plan.token_equivalents <= published


@pytest.mark.parametrize(
    "start, end, window, message", [(5, 4, 8, "5 and 4"), (-1, 4, 8, "-1"), (0, 4, 0, "windows must")]
)
def test_wrong_plans_are_refused(start, end, window, message):
    with pytest.raises(ValueError, match=message):
        plan_rebuild([window], end, start)
    plan = plan_rebuild([8], 20)
    with pytest.raises(ValueError, match="the plan is for 7 tokens and 1 layers, got 3 tokens and 9 layers"):
        tiny_model().rebuild_windows(torch.zeros(3, dtype=torch.int64), plan, {}, {}, PAGE_SIZE)
