"""The schedules of decode: a CTA of four key warps per sequence, KV head and split; products of 16 rows by mma.sync.

A tiny batch is a chain of latencies, none of which hides another: launch, the lookups of length and page, the load, the
CTA's bytes through its SM's port, the products with the last slice, the join of the warps. Large ones are bound by memory as
long as enough CTAs are at work that one's lookups, products and join are under another's loads.
"""

from dataclasses import dataclass

from bench.gpu.cases import Case, Layer, first_visible

from .card import RESERVED_SMEM_BYTES, Card
from .work import LOOKUP_US, SLICE, Work, busy_share, mma_sync_operands

KEY_WARPS = 4
SPLIT = 1024  # keys
MAX_RING_DEPTH = 4  # slots of a warp
JOIN_BYTES = 12 << 10  # of shared memory, for every 16 rows at once
# Clocks. A product with K continues the last but one before it, those with V are independent: one after another they start.
MMA_LATENCY, MMA_INTERVAL, SOFTMAX_LATENCY = 33, 7, 200
JOIN_LATENCY = 150  # of 32 columns: two barriers, shared memory written and read
CHAINED_LAUNCH = 0.25  # of a launch: a kernel chained by programmatic dependent launch is there when the first one ends


@dataclass(frozen=True)
class Layout:
    """How CTAs lie on an SM."""

    row_warps: int  # blocks of 16 rows at once, each with its own four key warps
    slots: int  # of shared memory, a slice each; 0: no room
    resident: bool  # the whole range has room: all of it may be on its way before the first product
    per_sm: int


def sm90_decode(case: Case, card: Card) -> Work | None:
    """Two or more CTAs per SM where their ranges are short enough to be resident: more than 16 rows are passes, and CTAs
    that ask for the same keys as far as SMs are idle. Else rings, for 32 rows at most: more are such CTAs. The combine of
    splits is chained to the kernel."""
    if case.op != "decode" or not card.is_hopper:
        return None
    layout = hopper_layout(case, card)
    ctas = -(-num_row_blocks(case) // layout.row_warps)
    if layout.resident and case.host_seqs:  # whose pages cross the link once
        ctas = 1
    elif layout.resident:
        ctas = max(1, min(ctas, card.num_sms // (len(case.seqs) * case.layer.num_kv_heads)))
    return decode("sm90_decode", case, card, layout, ctas, CHAINED_LAUNCH) if layout.slots else None


def sm80_decode(case: Case, card: Card) -> Work | None:
    """Up to 32 rows at once, further ones are further passes; up to four slots per warp, which are a ring for more than
    their keys. The combine of splits is a launch of its own."""
    if case.op != "decode":
        return None
    row_warps = min(num_row_blocks(case), 2)
    stage = KEY_WARPS * slice_bytes(case)
    room = card.smem_bytes - RESERVED_SMEM_BYTES - row_warps * JOIN_BYTES
    needed = -(-max_slices(case) // KEY_WARPS)
    depth = min(MAX_RING_DEPTH, room // stage, needed)
    slots = depth * KEY_WARPS
    layout = Layout(row_warps, slots, depth == needed, ctas_per_sm(case, card, row_warps, slots))
    passes = -(-num_row_blocks(case) // row_warps)
    return decode("sm80_decode", case, card, layout, passes, 1.0) if slots else None


def hopper_layout(case: Case, card: Card) -> Layout:
    def slots_in(smem_bytes: int, row_warps: int) -> int:
        return max(0, smem_bytes - RESERVED_SMEM_BYTES - row_warps * JOIN_BYTES) // slice_bytes(case)

    needed, several = max_slices(case), num_row_blocks(case) > 1
    whole, half = slots_in(card.smem_bytes, 1), slots_in(card.smem_bytes // 2, 1)
    if needed <= half or (needed <= whole and several):
        return Layout(1, needed, True, ctas_per_sm(case, card, 1, needed))
    row_warps = 2 if several else 1
    ring = slots_in(card.smem_bytes, 2) if several else half if half >= 2 * KEY_WARPS else whole
    slots = min(ring // KEY_WARPS, MAX_RING_DEPTH) * KEY_WARPS
    return Layout(row_warps, slots, False, ctas_per_sm(case, card, row_warps, slots))


def ctas_per_sm(case: Case, card: Card, row_warps: int, slots: int) -> int:
    """By shared memory and registers: a thread needs up to 255, for heads of 64 up to 170."""
    smem_bytes = slots * slice_bytes(case) + row_warps * JOIN_BYTES + RESERVED_SMEM_BYTES
    warps = 12 if case.layer.head_dim == 64 else 8
    return max(1, min(card.smem_bytes // smem_bytes, warps // (KEY_WARPS * row_warps)))


def decode(kernel: str, case: Case, card: Card, layout: Layout, passes: int, combine_launch: float) -> Work:
    """`passes`: over the same keys, each from memory or L2."""
    layer, heads = case.layer, case.layer.num_kv_heads
    slices = sum(slices_of(*seq, layer.window) for seq in case.seqs)
    splits = [splits_of(*seq, layer.window) for seq in case.seqs]
    cut = max(splits) > 1
    partial_bytes = 2 * 4 * layer.v_head_dim * layer.num_q_heads * case.q_len * sum(splits) if cut else 0
    ctas = sum(splits) * heads * passes
    busy = busy_share(ctas, card.num_sms)
    warp_slices = slices * heads * num_row_blocks(case)
    scores = warp_slices * SLICE * SLICE
    macs = scores * layer.dims
    at_once = min(layout.per_sm, -(-ctas // card.num_sms)) * layout.row_warps * KEY_WARPS  # warps of an SM
    slice_us = slice_latency(layer) / card.hertz * 1e6
    join_us = layer.v_head_dim / 32 * JOIN_LATENCY / card.hertz * 1e6
    return Work(
        kernel=kernel,
        wgmma=False,
        hbm_bytes=case.bytes - case.link_bytes + partial_bytes,
        l2_bytes=case.row_bytes + (case.bytes - case.row_bytes) * passes + partial_bytes,
        macs=macs,
        scores=scores,
        **mma_sync_operands(macs, case),
        busy=busy,
        starts=max(1, -(-ctas // (card.num_sms * layout.per_sm))),
        per_sm=layout.per_sm,
        link_bytes=case.link_bytes * passes,
        warp_us=warp_slices * slice_us / (card.num_sms * busy * at_once),
        tail_us=slice_us + join_us,
        combine_us=combine_launch * card.launch_us + LOOKUP_US if cut else 0.0,  # lse, then the outputs they weigh
        loads_first=layout.resident,
    )


def slice_latency(layer: Layer) -> float:
    """Clocks in which a warp attends with 16 rows to a slice, alone: products with K, softmax, products with V."""
    keys = layer.head_dim / 32 * MMA_LATENCY
    return keys + SOFTMAX_LATENCY + layer.v_head_dim / 8 * MMA_INTERVAL + MMA_LATENCY


def num_row_blocks(case: Case) -> int:
    return -(-case.q_len * case.layer.group_size // SLICE)


def slice_bytes(case: Case) -> int:
    scales = 512 if case.kv_bytes == 1 else 0  # a float per key and tensor, and alignment
    return SLICE * case.layer.dims * case.kv_bytes + scales


def max_slices(case: Case) -> int:
    """That a CTA may meet, wherever its keys begin."""
    keys = max(case.visible_keys)
    return SPLIT // SLICE if max(splits_of(*s, case.layer.window) for s in case.seqs) > 1 else (keys + 14) // SLICE + 1


def slices_of(q_len: int, context: int, window: int | None) -> int:
    return (context - 1) // SLICE - first_visible(q_len, context, window) // SLICE + 1


def splits_of(q_len: int, context: int, window: int | None) -> int:
    """That the visible keys touch; windows of one split are not cut."""
    if (window or context) <= SPLIT or context <= SPLIT:
        return 1
    return (context - 1) // SPLIT - first_visible(q_len, context, window) // SPLIT + 1
