"""What a session would cost at published price lists. Exact decimals; nothing here is measured."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from .usage import Usage

MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class PriceList:
    """Prices per million tokens, in `currency`, valid from `since` (None: not known) according to `source`.

    `evidence` says how far to trust it: "reported" (a published list or announcement) or "inferred" (one of the numbers
    was derived from a list in another currency).
    """

    model: str
    hit: Decimal
    miss: Decimal
    output: Decimal
    currency: str
    since: date | None
    source: str
    evidence: str


@dataclass(frozen=True)
class Bill:
    """What usage costs at one price list, by kind of token."""

    prices: PriceList
    hit: Decimal
    miss: Decimal
    output: Decimal

    @property
    def total(self) -> Decimal:
        return self.hit + self.miss + self.output


def _usd(model: str, prices: str, since: date | None, source: str, evidence: str = "reported") -> PriceList:
    hit, miss, output = map(Decimal, prices.split())
    return PriceList(model, hit, miss, output, "USD", since, source, evidence)


_MIMO = "Xiaomi MiMo price announcement"
_DEEPSEEK = "DeepSeek API price list"

# DeepSeek's lists are those before it introduced peak and off-peak prices in September 2026.
PRICES = {
    prices.model: prices
    for prices in (
        _usd("MiMo-V2.5-Pro", "0.0036 0.435 0.87", date(2026, 5, 27), _MIMO),
        _usd("MiMo-V2.5", "0.0028 0.14 0.28", date(2026, 5, 27), _MIMO + ", hit price from CNY", "inferred"),
        _usd("MiMo-V2-Flash", "0.01 0.10 0.30", None, "Xiaomi MiMo price list, CNY 0.07 / 0.70 / 2.10"),
        _usd("DeepSeek-V4-Flash", "0.0028 0.14 0.28", date(2026, 4, 26), _DEEPSEEK + ", hit price as cut"),
        _usd("DeepSeek-V4-Pro", "0.003625 0.435 0.87", date(2026, 5, 22), _DEEPSEEK + ", permanent discount"),
    )
}


def bill(usage: Usage, prices: PriceList) -> Bill:
    """The exact cost of `usage`."""
    return Bill(
        prices,
        hit=usage.cached_tokens * prices.hit / MILLION,
        miss=usage.miss_tokens * prices.miss / MILLION,
        output=usage.completion_tokens * prices.output / MILLION,
    )


def bill_without_cache(usage: Usage, prices: PriceList) -> Bill:
    """The cost of the same tokens when every prompt token is computed."""
    return bill(Usage(usage.prompt_tokens, 0, usage.completion_tokens), prices)
