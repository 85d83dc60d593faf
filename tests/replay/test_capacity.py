"""The search for a budget with a given hit rate."""

from math import log

import pytest

from swa_attn.replay.capacity import LARGEST, capacity_at


@pytest.mark.parametrize("target", [0.11, 0.5, 0.65])
@pytest.mark.parametrize("start", [1 << 20, 1 << 30, 1 << 45])
def test_a_straight_line_over_the_logarithm_is_found_exactly(target, start):
    def hit_rate(budget: int) -> float:
        return min(0.8, max(0.1, 0.1 + 0.02 * log(budget / 2**10)))

    found = capacity_at(target, hit_rate, start)
    assert found.num_bytes == pytest.approx(2**10 * 2.718281828 ** ((target - 0.1) / 0.02), rel=1e-3)
    assert len({budget for budget, _ in found.runs}) == len(found.runs) < 40


def test_a_step_is_found_within_the_bracket():
    found = capacity_at(0.5, lambda budget: float(budget >= 12_345_678), 1 << 20)
    assert 12_345_678 / 1.1 <= found.num_bytes <= 12_345_678 * 1.1


def test_a_rate_out_of_reach_takes_one_run():
    found = capacity_at(0.5, lambda _: 0.4, 1 << 30)
    assert found.num_bytes is None and found.runs == ((LARGEST, 0.4),)
