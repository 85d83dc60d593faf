"""How many pages a number of tokens needs, and how a byte budget is split between the pools."""

from collections.abc import Sequence

import torch

from .spec import GroupSpec


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold `num_tokens` tokens."""
    return -(-num_tokens // page_size)


def working_set(spec: GroupSpec, num_tokens: int, page_size: int) -> int:
    """Pages without which a sequence of `num_tokens` tokens cannot advance by one token.

    A windowed group needs the window before the start of the current page (so that the sequence can be resumed there)
    and that page.
    """
    pages = pages_for(num_tokens, page_size)
    return pages if spec.window is None else min(pages, pages_for(spec.window - 1, page_size) + 1)


def pages_for_budget(
    groups: Sequence[GroupSpec],
    page_size: int,
    dtype: torch.dtype,
    budget_bytes: int,
    *,
    min_windowed_tokens: int,
    windowed_share: float = 0.1,
) -> dict[str, int]:
    """Pages per group that fit into `budget_bytes`.

    A windowed pool gets `windowed_share` as many pages as the full pool, which is room for live windows and snapshots,
    but at least enough for `min_windowed_tokens`. Raises ValueError when not even one page per full group is left.
    """
    page_bytes = {g.name: page_size * g.bytes_per_token(dtype) for g in groups}
    windowed = [g.name for g in groups if g.window is not None]
    full = [g.name for g in groups if g.window is None]
    share = windowed_share if full else 1.0
    per_page = sum(page_bytes[n] for n in full) + share * sum(page_bytes[n] for n in windowed)
    count = int(budget_bytes / per_page)
    floor = pages_for(min_windowed_tokens, page_size)
    if windowed and int(share * count) < floor:
        left = budget_bytes - floor * sum(page_bytes[n] for n in windowed)
        count = left // sum(page_bytes[n] for n in full) if full else (floor if left >= 0 else 0)
        pages = {**dict.fromkeys(windowed, floor), **dict.fromkeys(full, count)}
    else:
        pages = {**dict.fromkeys(windowed, int(share * count)), **dict.fromkeys(full, count)}
    if count < 1:
        raise ValueError(
            f"budget_bytes is too small: {budget_bytes} cannot hold {floor} pages of each windowed group and one page "
            f"of each full group ({', '.join(f'{n}: {b} bytes per page' for n, b in page_bytes.items())})"
        )
    return {g.name: pages[g.name] for g in groups}
