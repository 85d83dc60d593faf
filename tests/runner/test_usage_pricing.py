from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest

from swa_attn.runner.pricing import PRICES, bill, bill_without_cache
from swa_attn.runner.usage import Usage


def test_usage_has_the_fields_of_both_apis():
    assert Usage(prompt_tokens=100, cached_tokens=64, completion_tokens=7).to_dict() == {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 64},
        "prompt_cache_hit_tokens": 64,
        "prompt_cache_miss_tokens": 36,
    }


def test_usages_add_up():
    assert sum([Usage(10, 4, 1), Usage(20, 16, 2)], Usage()) == Usage(30, 20, 3)


@pytest.mark.parametrize("counts", [(10, 11, 0), (10, -1, 0), (10, 0, -1), (-1, 0, 0)])
def test_impossible_usage_is_refused(counts):
    with pytest.raises(ValueError, match="cached_tokens <= prompt_tokens"):
        Usage(*counts)


@pytest.mark.parametrize(
    ("model", "hit", "miss", "output"),
    [
        ("MiMo-V2.5-Pro", "0.0036", "0.435", "0.87"),
        ("MiMo-V2.5", "0.0028", "0.14", "0.28"),
        ("MiMo-V2-Flash", "0.01", "0.1", "0.3"),
        ("DeepSeek-V4-Flash", "0.0028", "0.14", "0.28"),
        ("DeepSeek-V4-Pro", "0.003625", "0.435", "0.87"),
    ],
)
def test_a_million_tokens_of_each_kind_cost_the_list_price(model, hit, miss, output):
    million = 1_000_000
    cost = bill(Usage(3 * million, million, million), PRICES[model])
    assert (cost.hit, cost.miss, cost.output) == (Decimal(hit), 2 * Decimal(miss), Decimal(output))
    assert cost.total == Decimal(hit) + 2 * Decimal(miss) + Decimal(output)
    without = bill_without_cache(Usage(3 * million, million, million), PRICES[model])
    assert (without.hit, without.miss, without.output) == (0, 3 * Decimal(miss), Decimal(output))


def test_a_bill_is_exact():
    cost = bill(Usage(123_456_789, 123_456_788, 1), PRICES["DeepSeek-V4-Pro"])
    assert cost.total == Decimal("0.4475308565") + Decimal("0.000000435") + Decimal("0.00000087")
    prices = PRICES["MiMo-V2.5-Pro"]
    parts = [bill(Usage(n, n // 2, 3), prices).total for n in range(1, 200)]
    usage = sum((Usage(n, n // 2, 3) for n in range(1, 200)), Usage())
    assert sum(parts) == bill(usage, prices).total


def test_every_list_says_where_it_comes_from():
    for name, prices in PRICES.items():
        assert prices.model == name and prices.currency == "USD" and prices.source
        assert prices.evidence in ("reported", "inferred")
        assert prices.since is None or date(2026, 1, 1) < prices.since < date(2027, 1, 1)
        assert 0 < prices.hit < prices.miss < prices.output
    assert replace(PRICES["MiMo-V2.5"], evidence="reported") != PRICES["MiMo-V2.5"]  # its USD hit price is inferred
