"""The values of indices, looked at before an op runs: page ids, slots, lengths and query bounds.

Argument checks look at what tensors say about themselves (`_checks.py`), because looking at values waits for the device.
The CPU backend's C++ looks at them all the same while it uses them, and the reference through this file. A kernel on a
GPU does not: a wrong entry makes it read or write memory that is not a page. `SWA_ATTN_CHECK_VALUES=1`, or
`check_values()`, has every backend's calls checked here first, on any device, for one wait each.

Only entries that matter are looked at: of a block table, those of pages with a visible key.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ._checks import pages_apart

VARIABLE = "SWA_ATTN_CHECK_VALUES"
_OFF = ("", "0")
_forced: bool | None = None  # by `check_values`


def enabled() -> bool:
    """Whether values are looked at before every call; the environment is asked each time."""
    return os.environ.get(VARIABLE, "") not in _OFF if _forced is None else _forced


@contextlib.contextmanager
def check_values(on: bool = True) -> Iterator[None]:
    """Inside the block (process-wide, not per thread), look at page ids, slots, lengths and query bounds before every op.

    A wrong one raises IndexError with the argument, the index, the value and its bounds, on every backend, before anything
    is written. Each call waits for its device, so it is for debugging, and cannot be captured into a CUDA graph. Off, or on
    everywhere: `SWA_ATTN_CHECK_VALUES=1` in the environment.
    """
    global _forced
    previous, _forced = _forced, on
    try:
        yield
    finally:
        _forced = previous


def _fail(op: str, what: str) -> None:
    raise IndexError(f"swa_attn.{op}: {what}")


def _first(wrong: Tensor) -> tuple[int, ...] | None:
    """The first index at which `wrong` holds."""
    return tuple(wrong.nonzero()[0].tolist()) if bool(wrong.any()) else None


def _check_lengths(op: str, seqlens_k: Tensor, block_table: Tensor, page_size: int) -> None:
    max_pages = block_table.shape[1]
    at = _first((seqlens_k < 0) | (seqlens_k.long() > max_pages * page_size))
    if at:
        room = f"{max_pages * page_size} (block_table has {max_pages} pages of {page_size})"
        _fail(op, f"seqlens_k[{at[0]}] must be at least 0 and at most {room}, got {int(seqlens_k[at])}")


def _check_visible_pages(
    op: str, new: Tensor, seqlens_k: Tensor, block_table: Tensor, page_size: int, window: int, num_pages: int
) -> None:
    """`new` int64 `[num_seqs]`: the last tokens of each sequence, whose queries decide what is visible."""
    lengths = seqlens_k.long()
    first_key = torch.zeros_like(lengths)
    if window > 0:
        first_key = ((lengths - new).clamp(min=0) - window + 1).clamp(min=0)
    page = torch.arange(block_table.shape[1], device=block_table.device)
    visible = (page >= (first_key // page_size)[:, None]) & (page * page_size < lengths[:, None]) & (new > 0)[:, None]
    at = _first(visible & ((block_table < 0) | (block_table >= num_pages)))
    if at:
        expected = f"holds a visible key but is not a page id of 0..{num_pages - 1}"
        _fail(op, f"block_table[{at[0]}, {at[1]}] = {int(block_table[at])} {expected}")


def _num_pages(cache: Tensor, host_cache: Tensor | None) -> int:
    return cache.shape[0] + (0 if host_cache is None else host_cache.shape[0])


def prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
    *,
    window: int = -1,
    k_host_cache: Tensor | None = None,
    **_: object,
) -> None:
    page_size, bounds = k_cache.shape[1], cu_seqlens_q.long()
    _check_lengths("prefill", seqlens_k, block_table, page_size)
    new = bounds.diff()
    wrong = (new < 0) | (bounds[1:] > q.shape[0])
    at = _first(torch.cat([bounds[:1] != 0, wrong[1:]]) | wrong if len(wrong) else wrong)
    if at:
        around = f"{int(bounds[at])}, {int(bounds[at[0] + 1])} at {at[0]}"
        _fail("prefill", f"cu_seqlens_q must rise from 0 to at most {q.shape[0]}, got {around}")
    pages = _num_pages(k_cache, k_host_cache)
    _check_visible_pages("prefill", new, seqlens_k, block_table, page_size, window, pages)


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    *,
    window: int = -1,
    k_host_cache: Tensor | None = None,
    **_: object,
) -> None:
    page_size = k_cache.shape[1]
    _check_lengths("decode", seqlens_k, block_table, page_size)
    new = torch.full_like(seqlens_k, q.shape[1], dtype=torch.int64)
    pages = _num_pages(k_cache, k_host_cache)
    _check_visible_pages("decode", new, seqlens_k, block_table, page_size, window, pages)


def _check_once(op: str, name: str, values: Tensor, what: str) -> None:
    """No value that is not negative may occur twice: two writes to one place would race."""
    used = values[values >= 0].sort().values
    at = _first(used[1:] == used[:-1])
    if at:
        both = (values == used[at]).nonzero()[:2, 0].tolist()
        _fail(op, f"{name}[{both[0]}] and {name}[{both[1]}] are both {int(used[at])}: {what}")


def append_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_host_cache: Tensor | None = None,
    unique: bool = True,
    **_: object,
) -> None:
    """`unique`: also that no two tokens share a slot."""
    num_slots = _num_pages(k_cache, k_host_cache) * k_cache.shape[1]
    at = _first(slot_mapping >= num_slots)
    if at:
        beyond = f"{int(slot_mapping[at])} is beyond the {num_slots} slots of the pools"
        _fail("append_kv", f"slot_mapping[{at[0]}] = {beyond}")
    if unique:
        _check_once("append_kv", "slot_mapping", slot_mapping, "two tokens must not share a slot")


def copy_pages(
    src: Tensor, dst: Tensor, src_pages: Tensor, dst_pages: Tensor, *, unique: bool = True, **_: object
) -> None:
    """`unique`: also that no page is written twice, or read and written in one call."""
    for name, pages, pool in (("src_pages", src_pages, src), ("dst_pages", dst_pages, dst)):
        at = _first(pages >= pool.shape[1])
        if at:
            _fail("copy_pages", f"{name}[{at[0]}] = {int(pages[at])} is not a page of 0..{pool.shape[1] - 1}")
    if not unique:
        return
    dst_pages = dst_pages.to(src_pages.device)
    copied = (src_pages >= 0) & (dst_pages >= 0)
    written = torch.where(copied, dst_pages, -1)
    _check_once("copy_pages", "dst_pages", written, "a page must not be written twice")
    apart = pages_apart(src, dst) if src.device == dst.device and src.stride() == dst.stride() else None
    if apart is not None:
        written = torch.where(copied, dst_pages + apart, -1)  # as pages of src
        at = _first(copied & torch.isin(src_pages, written[copied]) & (src_pages != written))
        if at:
            moved = f"src_pages[{at[0]}] = {int(src_pages[at])}"
            _fail(
                "copy_pages", f"{moved} is also one of dst_pages: within one pool a page must not be read and written"
            )


def merge_states(*_: Tensor, **__: object) -> None:
    """Has no indices."""
