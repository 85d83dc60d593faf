"""Sampling: what the filters keep, that frequencies follow probabilities, and that a row knows nothing of its batch."""

import math

import numpy as np
import pytest
import torch

from swa_attn.runner import SamplingParams, sample
from swa_attn.runner.sampler import choose

VOCAB = 50
DRAWS = 4000


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def draws(row, **settings):
    """Frequencies of DRAWS tokens of one request."""
    params = SamplingParams(temperature=settings.pop("temperature", 1.0), seed=3, **settings)
    tokens = sample(row.expand(DRAWS, -1), [params] * DRAWS, range(DRAWS))
    return torch.bincount(torch.tensor(tokens), minlength=len(row)) / DRAWS


def assert_frequencies(measured, expected):
    expected = torch.tensor(expected)
    spread = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((measured - expected).abs() <= 4.5 * spread).all(), (measured, expected)


def test_greedy_takes_the_largest_and_breaks_ties_downwards():
    logits = torch.tensor([[0.0, 3.0, 3.0, -math.inf], [-1.0, -2.0, -3.0, -0.5]])
    assert sample(logits, [SamplingParams()] * 2, [0, 0]) == [1, 3]


@pytest.mark.parametrize("vocab_size", [1, 2, 511, 512, 513, 1024, 1500])
def test_greedy_takes_the_first_of_all_largest_wherever_they_are(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randint(0, 4, (200, vocab_size), generator=generator).float()
    for row in range(0, 150, 3):  # the largest at two places, or at one, anywhere
        places = torch.randint(0, vocab_size, (2,), generator=generator)
        logits[row, places] = 9.0
    for row, at in enumerate((0, vocab_size // 2, vocab_size - 1)):
        logits[160 + row, at] = math.nan
        logits[170 + row, at] = math.inf
        logits[180 + row] = -math.inf
        logits[190 + row] = -math.inf
        logits[190 + row, at] = -3e38
    rows = logits.tolist()
    broken = [any(map(math.isnan, row)) or not math.isfinite(max(row)) for row in rows]
    assert sum(broken) == 9
    expected = [None if bad else row.index(max(row)) for bad, row in zip(broken, rows, strict=True)]
    greedy = [SamplingParams()] * len(rows)
    assert choose(logits, greedy, [0] * len(rows)) == expected
    strided = logits.T.contiguous().T
    assert choose(strided, greedy, [0] * len(rows)) == expected


def test_frequencies_follow_the_probabilities():
    assert_frequencies(draws(logits_of(0.1, 0.2, 0.3, 0.4)), [0.1, 0.2, 0.3, 0.4])


def test_temperature():
    powers = torch.tensor([0.1, 0.2, 0.3, 0.4]) ** 2
    assert_frequencies(draws(logits_of(0.1, 0.2, 0.3, 0.4), temperature=0.5), (powers / powers.sum()).tolist())
    assert sample(logits_of(0.1, 0.6, 0.3)[None], [SamplingParams(temperature=1e-6, seed=0)], [0]) == [1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 2}, [0.0, 0.0, 3 / 7, 4 / 7]),
        ({"top_k": 1}, [0.0, 0.0, 0.0, 1.0]),
        ({"top_k": 100}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_p": 0.5}, [0.0, 0.0, 3 / 7, 4 / 7]),  # 0.4 alone does not reach 0.5
        ({"top_p": 0.3}, [0.0, 0.0, 0.0, 1.0]),
        ({"top_p": 1.0}, [0.1, 0.2, 0.3, 0.4]),
        ({"min_p": 0.6}, [0.0, 0.0, 3 / 7, 4 / 7]),  # below 0.6 * 0.4
        ({"min_p": 1.0}, [0.0, 0.0, 0.0, 1.0]),
        ({"top_k": 3, "top_p": 0.75}, [0.0, 0.0, 3 / 7, 4 / 7]),  # top_p counts among the top_k: 7 of 9 parts
    ],
    ids=str,
)
def test_filters(settings, expected):
    assert_frequencies(draws(logits_of(0.1, 0.2, 0.3, 0.4), **settings), expected)


def test_impossible_tokens_are_never_drawn():
    assert_frequencies(draws(torch.tensor([-math.inf, 0.0, -math.inf, 0.0])), [0.0, 0.5, 0.0, 0.5])


def test_a_row_depends_on_nothing_but_itself():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(24, VOCAB, generator=generator)
    params = [
        SamplingParams(temperature=0.7 * (i % 3), top_k=[None, 5][i % 2], top_p=[1.0, 0.8][i % 2], seed=i)
        for i in range(24)
    ]
    steps = [i % 5 for i in range(24)]
    together = sample(logits, params, steps)
    alone = [sample(logits[i : i + 1], params[i : i + 1], steps[i : i + 1])[0] for i in range(24)]
    assert together == alone
    order = torch.randperm(24, generator=generator).tolist()
    shuffled = sample(logits[order], [params[i] for i in order], [steps[i] for i in order])
    assert shuffled == [together[i] for i in order]


def test_seed_and_step_decide_the_draw():
    logits = torch.zeros(1, 1000)

    def draw(seed, step):
        return sample(logits, [SamplingParams(temperature=1.0, seed=seed)], [step])[0]

    assert draw(1, 0) == draw(1, 0)
    tokens = [draw(seed, step) for seed in range(5) for step in range(5)]
    assert len(set(tokens)) > 20
    assert len({draw(None, 0) for _ in range(10)}) > 5, "without a seed every draw is fresh"


def test_a_broken_row_is_an_error_not_a_token():
    logits = torch.zeros(4, 3)
    logits[1, 0], logits[2] = math.nan, -math.inf
    for temperature in (0.0, 1.0):
        params = [SamplingParams(temperature=temperature)] * 4
        with pytest.raises(ValueError, match=r"rows \[1, 2\] do not"):
            sample(logits, params, [0] * 4)
        chosen = choose(logits, params, [0] * 4)
        assert chosen[1] is None and chosen[2] is None and None not in (chosen[0], chosen[3])


def test_shapes_are_checked_and_no_rows_are_fine():
    assert sample(torch.zeros(0, 5), [], []) == []
    with pytest.raises(ValueError, match=r"one of params and of steps per row, got \[2, 5\], 1 and 2"):
        sample(torch.zeros(2, 5), [SamplingParams()], [0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_k": 0}, "top_k must be at least 1 or None, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"min_p": -0.5}, "min_p must be between 0 and 1, got -0.5"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
        ({"min_p": math.nan}, "min_p must be between 0 and 1, got nan"),
        ({"temperature": 10**400}, "temperature must be 0 .* got inf"),
        ({"seed": 2**64}, r"seed must be from -2\*\*63 to 2\*\*64 - 1, got 18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed must be from"),
        ({"stop_token_ids": [3, -1]}, r"stop_token_ids\[1\] must be a token id, at least 0, got -1"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_ranges_of_parameters_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 2**63}, r"max_tokens must be at most 2\*\*63 - 1, got 9223372036854775808"),
        ({"max_tokens": 10**5000}, r"max_tokens must be at most .* got an integer of 16610 bits"),
        ({"max_tokens": -(10**5000)}, "max_tokens must be at least 1, got an integer of 16610 bits"),
        ({"top_k": 10**5000}, r"top_k must be at most .* got an integer of 16610 bits"),
        ({"seed": 10**5000}, r"seed must be from .* got an integer of 16610 bits"),
        ({"stop_token_ids": [3, -(10**5000)]}, r"stop_token_ids\[1\] must be .* got an integer of 16610 bits"),
    ],
)
def test_integers_too_long_to_write_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^SamplingParams: {message}") as error:
        SamplingParams(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("max_tokens", [math.inf, 2.5, 2.0, None, "8", True, [1], np.float32(3)], "an integer, got"),
        ("top_k", [math.inf, 2.5, "8", True], "an integer or None, got"),
        ("seed", [1.0, "8", False, b"1"], "an integer or None, got"),
        ("temperature", [None, "0.7", True, [1.0], 1j, torch.tensor(1.0)], "a number, got"),
        ("top_p", [None, "1", True], "a number, got"),
        ("min_p", [None, "0", False], "a number, got"),
        ("stop_token_ids", [5, None, 2.5], "an iterable of token ids, got"),
        ("stop_token_ids", ["a", [1.0], [True], [None], [[1]]], "an integer, got"),
    ],
)
def test_types_of_parameters_are_checked(name, values, expected):
    for value in values:
        with pytest.raises(TypeError, match=rf"^SamplingParams: {name}(\[0\])? must be {expected}") as error:
            SamplingParams(**{name: value})
        assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_kept_as_python_s():
    given = SamplingParams(
        max_tokens=np.int32(7),
        temperature=np.float32(0.5),
        top_k=np.uint8(3),
        top_p=np.float64(0.9),
        min_p=0,
        seed=np.int64(5),
        stop_token_ids=np.array([1, 2]),
    )
    plain = SamplingParams(7, 0.5, 3, 0.9, 0.0, 5, (1, 2))
    assert given == plain
    assert [type(v) for v in vars(given).values()] == [type(v) for v in vars(plain).values()]
    assert SamplingParams(seed=2**64 - 1).seed == 2**64 - 1 and SamplingParams(seed=-(2**63)).seed == -(2**63)


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 5e37, -5e37])
def test_a_temperature_near_zero_takes_the_likeliest(temperature, scale):
    row = torch.tensor([1.0, 3.0, 2.0, -math.inf, 3.0]) * abs(scale) - (4 * abs(scale) if scale < 0 else 0)
    for seed in range(20):
        (token,) = sample(row[None], [SamplingParams(temperature=temperature, seed=seed)], [0])
        assert token in (1, 4)
    assert sample(row[None, :3], [SamplingParams(temperature=temperature)], [0]) == [1]


def test_a_huge_temperature_takes_any_but_the_impossible():
    row = torch.tensor([1e30, -1e30, 0.0, -math.inf])
    seen = {sample(row[None], [SamplingParams(temperature=1.7e308, seed=i)], [0])[0] for i in range(50)}
    assert seen == {0, 1, 2}
