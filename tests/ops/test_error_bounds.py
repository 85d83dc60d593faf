"""The error bounds themselves: mistakes just outside them are found on every backend, and they are no wider than a
backend's own roundings make them."""

import importlib
import importlib.util
import itertools
from dataclasses import replace

import pytest
import torch
from fitting import fit

import swa_attn
from swa_attn import reference
from swa_attn.testing import AttentionCase, Inputs, assert_close_to_oracle, build, oracle
from swa_attn.testing.bounds import Bounds, attention_bounds, merge_bounds
from swa_attn.testing.compare import assert_within, ran
from swa_attn.testing.roundings import EXP, LOG, TANH_BY_EXP, Rounding, Roundings, roundings_of

HALVES = (torch.bfloat16, torch.float16)
CASE = AttentionCase(seqs=((5, 60), (1, 23)), window=17, page_size=8, head_dim=64, v_head_dim=64, sinks=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)


def attend(inputs: Inputs, **changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    return swa_attn.prefill(*inputs.prefill_args, **{**inputs.options, **changes})


def bounds_of(inputs: Inputs, roundings: Roundings) -> Bounds:
    return attention_bounds(*inputs.prefill_args, **inputs.options, roundings=roundings)


@DTYPES
@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_planted_mistakes_are_found(backend, op, dtype):
    """A log-sum-exp off by 1e-4, a key too many or too few, a sink counted twice or not at all."""
    case = fit(replace(CASE, dtype=dtype, seqs=((2, 60), (2, 23))), backend)
    wide = build(replace(case, window=case.window + 1))
    inputs = build(case)
    inputs.k_cache, inputs.v_cache, inputs.block_table = wide.k_cache, wide.v_cache, wide.block_table

    def results(**changes: object) -> tuple[torch.Tensor, torch.Tensor]:
        if op == "prefill":
            return attend(inputs, **changes)
        return tuple(x.flatten(0, 1) for x in swa_attn.decode(*inputs.decode_args, **{**inputs.options, **changes}))

    sinks = inputs.options["sinks"]
    out, lse = results()
    assert_close_to_oracle(inputs, out, lse)
    for name, planted in [
        ("lse", (out, lse + 1e-4)),
        ("lse", (out, lse - 1e-4)),
        ("out", results(window=case.window + 1)),
        ("out", results(window=case.window - 1)),
        ("out", (results(sinks=sinks + torch.log(torch.tensor(2.0)))[0], lse)),
        ("out", (results(sinks=None)[0], lse)),
    ]:
        with pytest.raises(AssertionError, match=f"^{name} of .* outside their bounds"):
            assert_close_to_oracle(inputs, *planted)


@DTYPES
def test_an_error_just_outside_its_bound_is_found(dtype):
    inputs = build(replace(CASE, dtype=dtype))
    exact, bounds = oracle(inputs), bounds_of(inputs, roundings_of("cuda", dtype))
    for sign in (1, -1):
        inside = tuple(x + sign * 0.999 * b for x, b in zip(exact, (bounds.out, bounds.lse)))
        assert_within(bounds, exact, inside, "a case")
        for i, name in enumerate(("out", "lse")):
            outside = [x.clone() for x in exact]
            outside[i].view(-1)[7] += sign * 1.001 * (bounds.out, bounds.lse)[i].reshape(-1)[7]
            with pytest.raises(AssertionError, match=f"{name} of a case: 1 of"):
                assert_within(bounds, exact, outside, "a case")


def twice(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights that were scaled when they were rounded, and rounded again afterwards."""
    return ((weights * 1.5).to(dtype).to(weights.dtype) / 1.5).to(dtype).to(weights.dtype)


def nearest(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weights.to(dtype).to(weights.dtype)


def worst_case(dtype: torch.dtype, rounding, backend: str) -> tuple[Inputs, float]:
    """A row whose errors add up instead of cancelling out, and by how much of two roundings they then are off.

    One key of score 0 has value 0, `count` keys have one score and one value: the score whose weight `rounding` moves
    farthest, and the value whose result is then rounded the same way.
    """
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).double()
    scores, values = every[(every < 0) & (every > -5)], every[(every >= 1) & (every < 2)]
    moved = rounding(scores.exp(), dtype) / scores.exp() - 1
    score = scores[moved.abs().argmax()]
    weight, rounded_weight = score.exp(), rounding(score.exp(), dtype)
    counts = torch.arange(1, 24, dtype=torch.float64)[:, None]
    exact = counts * weight * values / (1 + counts * weight)
    got = (exact * (rounded_weight / weight)).to(dtype).double()
    share = (got / exact - 1).abs() / (2 * Rounding.to(dtype).unit)
    at = int(share.argmax())
    count, value = at // len(values) + 1, values[at % len(values)]

    case = fit(AttentionCase(seqs=((1, count + 1),), window=None, page_size=8, dtype=dtype), backend)
    inputs = build(case)
    inputs.options["softmax_scale"] = 1.0
    inputs.q.zero_()
    inputs.q[..., 0] = 1
    for position in range(count + 1):
        page, slot = inputs.block_table[0, position // case.page_size], position % case.page_size
        inputs.k_cache[page, slot] = 0.0
        inputs.k_cache[page, slot, :, 0] = score.to(dtype) if position else 0.0
        inputs.v_cache[page, slot] = value.to(dtype) if position else 0.0
    return inputs, share.flatten()[at].item()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_weight_rounded_once_is_inside_and_near_its_bound(backend, dtype):
    inputs, expected = worst_case(dtype, nearest, backend)
    out, lse = attend(inputs)
    assert_close_to_oracle(inputs, out, lse)
    roundings = roundings_of(ran(inputs), dtype)
    error = (out.double() - oracle(inputs)[0]).abs() / bounds_of(inputs, roundings).out
    assert expected > 0.9  # of a rounding of the weights and one of the result
    if roundings.weights.unit:
        assert error.max() > 0.85


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_weight_rounded_twice_is_outside_its_bound(dtype):
    """As arithmetic; the tests below, and planted mistakes in the CUDA and CPU kernels, let backends do it."""
    inputs, expected = worst_case(dtype, twice, "reference")
    assert expected > 1.02
    bounds = bounds_of(inputs, roundings_of("cuda", dtype))
    out, lse = oracle(inputs)
    off = (1 + expected * 2 * Rounding.to(dtype).unit) * out
    with pytest.raises(AssertionError, match="out of"):
        assert_within(bounds, (out, lse), (off, lse), "a case")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_weight_rounded_twice_is_found(backend, dtype):
    """A backend with such a mistake fails here, since its weights are moved as far as they can be."""
    inputs, _ = worst_case(dtype, twice, backend)
    assert_close_to_oracle(inputs, *attend(inputs))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


class RoundingTwice:
    """torch, but for the product of weights and values."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def einsum(self, equation: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum(equation, twice(a, self._dtype) if equation.startswith("hgn,") else a, b)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_reference_rounding_weights_twice_is_found(monkeypatch, dtype):
    inputs, _ = worst_case(dtype, twice, "reference")
    with swa_attn.use_backend("reference"), monkeypatch.context() as patch:
        patch.setattr(reference, "torch", RoundingTwice(dtype))
        out, lse = attend(inputs)
    with pytest.raises(AssertionError, match="out of"):
        assert_close_to_oracle(inputs, out, lse, backend="reference")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="plants a mistake by way of the interpreter")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_triton_rounding_weights_twice_is_found(monkeypatch, dtype):
    import rounding_twice

    inputs, _ = worst_case(dtype, twice, "triton")
    monkeypatch.setattr(importlib.import_module("swa_attn.triton.attend"), "rounded", rounding_twice.rounded_twice)
    with swa_attn.use_backend("triton"), pytest.raises(AssertionError, match="out of"):
        assert_close_to_oracle(inputs, *attend(inputs))


@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_tanh_by_exponentials_is_within_its_error(signs):
    """The CUDA kernels' softcap in float32, with every approximate instruction as wrong as PTX lets it be."""
    x = torch.cat([torch.linspace(-40, 40, 400_001), torch.logspace(-9, 0, 100_001)]).float()
    log2_e = torch.tensor(1.4426950408889634)

    def ex2(y: torch.Tensor, sign: int) -> torch.Tensor:
        return (torch.exp2(y.double()) * (1 + sign * EXP)).float()

    def lg2(y: torch.Tensor, sign: int) -> torch.Tensor:
        exact = torch.log2(y.double())
        return (exact + sign * LOG * torch.where((y > 0.5) & (y < 2), 1.0, exact.abs())).float()

    got = 1 - ex2(1 - lg2(ex2(2 * log2_e * x, signs[0]) + 1, signs[1]), signs[2])
    error = (got.double() - torch.tanh(x.double())).abs().max().item()
    assert error < TANH_BY_EXP
    if len(set(signs)) == 1:  # all the same way: no wider than it must be, within a factor
        assert error > TANH_BY_EXP / 8


def one_row(scores, values, dtype=torch.float32, **options):
    """A query that has these scores with its keys, whose values are these, in one page."""
    n, dim = len(scores), 64
    q, k, v = torch.zeros(1, 2, dim), torch.zeros(1, n, 1, dim), torch.zeros(1, n, 1, dim)
    q[..., 0], k[0, :, 0, 0], v[0, :, 0] = 1.0, torch.tensor(scores), torch.tensor(values)[:, None]
    where = [torch.tensor(x, dtype=torch.int32) for x in ([[0]], [n], [0, 1])]
    return (*(x.to(dtype) for x in (q, k, v)), *where), {"softmax_scale": 1.0, **options}


def test_the_bound_of_a_row_is_its_own():
    """Neither a longer row beside it nor a key without weight widens it."""
    case = replace(CASE, seqs=((300, 300),), window=None, sinks=False)
    inputs, roundings = build(case), roundings_of("cuda", torch.bfloat16)
    together = bounds_of(inputs, roundings)
    arguments = list(inputs.prefill_args)
    arguments[0], arguments[4:] = inputs.q[:1], [torch.tensor([1]), torch.tensor([0, 1])]
    alone = attention_bounds(*arguments, **inputs.options, roundings=roundings)
    torch.testing.assert_close(together.lse[:1], alone.lse)
    torch.testing.assert_close(together.out[:1], alone.out)
    exact = roundings_of("reference", torch.float32)
    few, more = ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0)), ((0.0, -1e8, 0.0, 0.0), (1.0, 0.0, 2.0, 3.0))
    bounds = []
    for scores, values in (few, more):
        arguments, options = one_row(scores, values)
        bounds.append(attention_bounds(*arguments, **options, roundings=exact))
    assert bounds[0].out.max() < 1e-5 and bounds[1].out.max() < 1e-3 and bounds[1].lse.max() < 1e-4


def test_there_is_no_bound_where_a_type_ends():
    half = roundings_of("cuda", torch.float16)
    for value, bounded in ((60000.0, True), (65504.0, False)):
        arguments, options = one_row((0.0, -1.0), (value, value), torch.float16)
        assert attention_bounds(*arguments, **options, roundings=half).out.isfinite().all() == bounded
    arguments, options = one_row((0.0, 1e9), (1.0, 2.0))
    assert attention_bounds(*arguments, **options, roundings=roundings_of("cuda", torch.float32)).out.isinf().all()


@pytest.mark.parametrize("other", [-1.0, -87.5, -1e4, -1e10, float("-inf")])
def test_merging_with_a_partial_of_no_weight(backend, other):
    """The bound is the other partial's, and results stay inside, also where a sink takes nearly all."""
    parts = torch.full((2, 1, 64), 1e4), torch.full((2, 1), 1.0), torch.full((2, 1, 64), 1e4), torch.full((2, 1), other)
    for sinks in (None, torch.tensor([90.0])):
        got = swa_attn.merge_states(*parts, sinks=sinks)
        exact = reference.merge_states(parts[0].double(), parts[1], parts[2].double(), parts[3], sinks)
        bounds = merge_bounds(*parts, sinks, torch.float32)
        assert_within(bounds, exact, got, "merge_states")
        assert other > -80 or bounds.lse.max() < 3e-6


def test_products_that_vanish(backend):
    """Factors that are normal numbers and whose products are not, under the largest scale."""
    if backend in ("emulated", "cuda"):
        pytest.skip("these kernels have no float32")
    arguments, options = one_row((2.0**-70, 0.8 * 2.0**-70), (1.0, 2.0), softmax_scale=2.0**127)
    arguments = (arguments[0] * 2.0**-70, *arguments[1:])
    got = swa_attn.prefill(*arguments, **options)
    exact = reference.prefill(*arguments, **options, compute_dtype=torch.float64)
    roundings = roundings_of(backend, torch.float32)
    assert_within(attention_bounds(*arguments, **options, roundings=roundings), exact, got, "tiny products")
