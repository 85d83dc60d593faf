"""Amounts of bytes and tokens, as people write and read them."""

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40, "PI": 2**50}
LARGEST = 1 << 60
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+)\s*(|[KMGTP]|[KMGTP]I)B?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """`300GB` (10**9), `1.5TiB` (2**40), `4096`. Raises ValueError."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected an amount of bytes such as 300GB, 1.5TiB or 4096, got {text[:40]!r}")
    amount = float(match[1]) * (_UNITS | _BINARY)[match[2].upper()]
    if amount > LARGEST:
        raise ValueError(f"expected at most {LARGEST} bytes, got {text[:40]!r}")
    return int(amount)


def show_bytes(amount: float) -> str:
    """Three digits and a decimal unit."""
    return _shown(amount, ("B", "kB", "MB", "GB", "TB", "PB"))


def show_count(amount: float) -> str:
    """As `show_bytes`, for tokens."""
    return _shown(amount, ("", "k", "M", "G", "T"))


def _shown(amount: float, units: tuple[str, ...]) -> str:
    size = 0
    while abs(amount) >= 999.5 and size + 1 < len(units):
        amount /= 1000
        size += 1
    digits = 0 if size == 0 or abs(amount) >= 99.5 else 1 if abs(amount) >= 9.95 else 2
    return f"{amount:,.{digits}f} {units[size]}".rstrip()
