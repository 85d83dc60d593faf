"""The schedules of prefill: walks along segments for small windows, streams of tiles for the rest.

Pages on the host are not modelled. Assumed to overlap: loads with everything (a ring is ahead of the products), one
warp's or warpgroup's softmax with another's products, O's way out with the next step.
"""

from collections.abc import Callable

from bench.gpu.cases import Case, Layer

from .card import RESERVED_SMEM_BYTES, Card
from .work import SLICE, WGMMA_SCORE_INSTRUCTIONS, Work, mma_sync_operands, scheduled

TILE = 64  # keys, and rows of wgmma
CONSUMERS = 2
ROWS = 128  # of a CTA
# Of sm90_swa_prefill: slots of the ring by head dims, and how far windows go.
SLOTS = {(64, 64): 8, (128, 128): 5, (192, 128): 4}
MAX_WINDOW, ONE_PASS_WINDOW = 257, 129
NARROW_SLICES = 9


def sm90_swa_prefill(case: Case, card: Card) -> Work | None:
    """Blocks of 64 rows, which multiply nine slices where a window is that, else whole tiles. The steps of two warpgroups
    alternate: one's products run in the other's softmax."""
    layer = case.layer
    max_slots = SLOTS.get((layer.head_dim, layer.v_head_dim), 0)
    if not takes_hopper_prefill(case, card) or (layer.window or 1 << 30) > MAX_WINDOW:
        return None
    tokens = 1 << (TILE // layer.group_size).bit_length() - 1  # of a warpgroup
    step = CONSUMERS * tokens
    visible = (layer.window + TILE - 2) // TILE + max(1, step // TILE)
    room = card.smem_bytes - RESERVED_SMEM_BYTES - ROWS * layer.head_dim * 2 - (16 << 10)  # queries, outputs
    if visible > min(max_slots, room // (TILE * layer.dims * 2)):
        return None
    segments = cut(case, step, card)
    blocks = [-(-(first % tokens + length) // tokens) for first, length in segments]
    rows = TILE * sum(blocks) * layer.num_kv_heads

    scores = rows * average(lambda first: multiplied_keys(layer, first, tokens), tokens)
    tiles = average(lambda first: touched(layer, first, tokens, TILE), tokens)
    return Work(
        kernel="sm90_swa_prefill",
        wgmma=True,
        **walk_bytes(case, segments),
        macs=scores * layer.dims,
        scores=scores,
        score_instructions=WGMMA_SCORE_INSTRUCTIONS,
        smem_bytes=wgmma_operand_bytes(scores * layer.dims, rows * tiles, layer),
        **scheduled(blocks * layer.num_kv_heads, card),
    )


def sm80_swa_prefill(case: Case, card: Card) -> Work | None:
    """Warps of 16 rows, each over the slices that some row of it sees."""
    layer = case.layer
    if case.op != "prefill" or case.host_seqs or layer.window is None or layer.head_dim > 192:
        return None
    step = ROWS // layer.group_size
    slots = (layer.window - 1 + 2 * step + SLICE - 2) // SLICE + 1
    if slots * SLICE * layer.dims * case.kv_bytes > card.smem_bytes - RESERVED_SMEM_BYTES:
        return None
    segments = cut(case, step, card)
    warps = [-(-length * layer.group_size // SLICE) for _, length in segments]
    tokens = max(1, SLICE // layer.group_size)
    slices = average(lambda first: touched(layer, first, tokens, SLICE), tokens)
    scores = SLICE * sum(warps) * layer.num_kv_heads * slices * SLICE
    return Work(
        kernel="sm80_swa_prefill",
        wgmma=False,
        **walk_bytes(case, segments),
        macs=scores * layer.dims,
        scores=scores,
        **mma_sync_operands(scores * layer.dims, case),
        **scheduled(warps * layer.num_kv_heads, card),
    )


def sm90_prefill(case: Case, card: Card) -> Work | None:
    """A CTA per 128 rows, for each 64 of them tiles of 128 keys (64 for heads of 256). The last tokens start first, all
    heads together; neighbours find K and V in L2. Softmax runs under the product with V."""
    layer = case.layer
    if not takes_hopper_prefill(case, card):
        return None
    tokens, grain = TILE // layer.group_size, 2 * TILE if layer.head_dim < 256 else TILE
    keys, tiles, costs = stream(case, tokens, CONSUMERS, grain)
    heads = layer.num_kv_heads
    scores = heads * TILE * grain * tiles
    macs = scores * layer.dims
    return Work(
        kernel="sm90_prefill",
        wgmma=True,
        **stream_bytes(case, keys),
        macs=macs,
        scores=scores,
        score_instructions=WGMMA_SCORE_INSTRUCTIONS,
        smem_bytes=wgmma_operand_bytes(macs, heads * TILE * tiles, layer),
        **scheduled([cost for cost in reversed(costs) for _ in range(heads)], card),
    )


def sm80_prefill(case: Case, card: Card) -> Work | None:
    """A CTA per 128 rows; 8 warps of 16, each over the slices that some row of it sees; head after head."""
    layer = case.layer
    if case.op != "prefill" or case.host_seqs:
        return None
    parts = 8 if layer.group_size <= SLICE else ROWS // layer.group_size
    keys, slices, costs = stream(case, max(1, SLICE // layer.group_size), parts, SLICE)
    heads = layer.num_kv_heads
    scores = heads * ROWS // parts * SLICE * slices
    return Work(
        kernel="sm80_prefill",
        wgmma=False,
        **stream_bytes(case, keys),
        macs=scores * layer.dims,
        scores=scores,
        **mma_sync_operands(scores * layer.dims, case),
        **scheduled(costs[::-1] * heads, card),
    )


def takes_hopper_prefill(case: Case, card: Card) -> bool:
    """What both of Hopper's kernels ask for."""
    fits = case.op == "prefill" and case.kv_bytes == 2 and case.layer.group_size <= TILE
    return card.is_hopper and fits and not case.host_seqs


def wgmma_operand_bytes(macs: float, row_tiles: float, layer: Layer) -> float:
    """Of shared memory: K and V once for every 64 rows; the queries' rows once for every tile that they see."""
    return macs / TILE * 2 + row_tiles * layer.head_dim * 2


def touched(layer: Layer, first: int, tokens: int, grain: int) -> int:
    """Ranges of `grain` keys that the `tokens` positions from `first` on see."""
    return (first + tokens - 1) // grain - max(0, first - layer.window + 1) // grain + 1


def multiplied_keys(layer: Layer, first: int, tokens: int) -> int:
    """Of sm90_swa_prefill's step of `tokens` positions: the last nine slices if they have all keys that are seen and every
    token sees the inner seven, else the tiles that are touched."""
    last = first + tokens - 1
    begin, seen_by_all = max(0, first - layer.window + 1), max(0, last - layer.window + 1)
    narrow = last // SLICE - NARROW_SLICES + 1
    inside = begin // TILE * TILE // SLICE <= narrow <= begin // SLICE
    unmasked = (narrow + 1) * SLICE >= seen_by_all and last // SLICE * SLICE <= first + 1
    if layer.window <= ONE_PASS_WINDOW and inside and unmasked:
        return NARROW_SLICES * SLICE
    return touched(layer, first, tokens, TILE) * TILE


def average(count: Callable[[int], int], tokens: int) -> float:
    """Of count(position) over multiples of `tokens` that see a whole window."""
    positions = range(4096, 4096 + TILE * tokens, tokens)
    return sum(map(count, positions)) / len(positions)


def cut(case: Case, step: int, card: Card) -> list[tuple[int, int]]:
    """A walk's segments, as first position and number of tokens: the longest that still give each SM work."""
    per_cta = -(-case.num_tokens * case.layer.num_kv_heads // card.num_sms)
    length = -(-per_cta // step) * step
    return [
        (context - q_len + first, min(length, q_len - first))
        for q_len, context in case.seqs
        for first in range(0, q_len, length)
    ]


def walk_bytes(case: Case, segments: list[tuple[int, int]]) -> dict[str, float]:
    """Each segment loads its window anew, from memory: its neighbour was there long before."""
    window = case.layer.window
    keys = sum(length + min(first, window - 1) for first, length in segments)
    total = case.row_bytes + keys * case.key_bytes
    return {"hbm_bytes": total, "l2_bytes": total}


def stream(case: Case, tokens: int, parts: int, grain: int) -> tuple[int, int, list[int]]:
    """Of one KV head: keys that CTAs load, `grain`s of keys that their parts of `tokens` positions see, and per CTA those
    of the part that sees most."""
    window = case.layer.window or 1 << 30
    keys, total, costs = 0, 0, []
    for q_len, context in case.seqs:
        for first in range(context - q_len, context, tokens * parts):
            end = min(first + tokens * parts, context)
            spans = [(f, min(f + tokens, end)) for f in range(first, end, tokens)]
            seen = [-(-e // grain) - max(0, f - window + 1) // grain for f, e in spans]
            keys += end - max(0, first - window + 1)
            total += sum(seen)
            costs.append(max(seen))
    return keys, total, costs


def stream_bytes(case: Case, keys: int) -> dict[str, float]:
    """All but the first to ask for a key find it in L2."""
    return {"hbm_bytes": case.bytes, "l2_bytes": case.row_bytes + keys * case.key_bytes}
