"""What each CUDA kernel should take on a card, from counting its schedule: predictions to hold measurements against.

    python -m bench.model [--json bench/results/model_h100_h200.json]

No GPU needed, and nothing here has been measured: ceilings are assumptions (`CARDS`). Per case and kernel the model counts
what the schedule does - tiles, segments, rounds of CTAs - and gives two times. `overlapped`: memory, products and softmax
are in each other's shadow, the longest counts. `serial`: memory is, but an SM's products and softmax take turns. Both add
the launch and the first load, which nothing hides. A kernel should be measured between them; above `serial` something
waits that the schedule does not show.
"""

import argparse
import heapq
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gpu.cases import Case, Layer, all_cases

LAUNCH_US, FIRST_LOAD_US = 1.35, 1.5
SMEM_BYTES = 227 << 10
SLICE, TILE = 16, 64  # keys: the grain of sm_80's kernels, of Hopper's
ROWS = 128  # of a CTA of prefill
SPLIT = 1024
INSTRUCTIONS_PER_SCORE = 6  # scale, maximum, subtract, add, half a conversion, bookkeeping; ex2 not counted


@dataclass(frozen=True)
class Card:
    """Assumed ceilings: `bytes` and `l2_bytes` per second; `macs`, `ex2` and `lanes` per SM and clock."""

    name: str
    bytes: float
    l2_bytes: float = 5.5e12
    num_sms: int = 132
    hertz: float = 1.7e9
    macs: int = 2048
    mma_sync_share: float = 0.6  # of the products that wgmma reaches
    ex2: int = 16
    lanes: int = 128


CARDS = (Card("H100", bytes=3.0e12), Card("H200", bytes=4.3e12))


@dataclass(frozen=True)
class Work:
    """Of a launch: bytes of memory and L2, multiply-adds issued, scores that go through the softmax."""

    kernel: str
    hbm_bytes: float
    l2_bytes: float
    macs: float
    scores: float
    busy: float  # share of the SM-rounds that have a CTA
    wgmma: bool


def spans(layer: Layer, tokens: int, grain: int) -> float:
    """Keys, in whole multiples of `grain`, that `tokens` positions from a multiple of `tokens` on see, on average."""
    window = layer.window
    starts = range(4096, 4096 + grain * tokens, tokens)
    touched = [(p + tokens - 1) // grain - (p - window + 1) // grain + 1 for p in starts]
    return grain * sum(touched) / len(touched)


def busy_share(ctas: int, num_sms: int) -> float:
    return ctas / (-(-ctas // num_sms) * num_sms)


def walk(kernel: str, case: Case, card: Card) -> Work | None:
    """`sm80_swa_prefill` and `sm90_swa_prefill`: a CTA walks along a segment with the window in a ring."""
    layer, hopper = case.layer, kernel.startswith("sm90")
    if case.op != "prefill" or layer.window is None or layer.head_dim > 192:
        return None
    group = layer.num_q_heads // layer.num_kv_heads
    if hopper:
        if layer.window > 2 * TILE + 1 or case.kv_bytes == 1:
            return None
        tokens = 1 << (TILE // group).bit_length() - 1  # of a warpgroup
        step, grain = 2 * tokens, TILE
        rows_per_token, warp_tokens = 64 / tokens, max(1, tokens // 4)
    else:
        step, grain = ROWS // group, SLICE
        slots = (layer.window - 1 + 2 * step + SLICE - 2) // SLICE + 1
        if slots * SLICE * (layer.head_dim + layer.v_head_dim) * case.kv_bytes > SMEM_BYTES:
            return None
        tokens = warp_tokens = max(1, SLICE // group)
        rows_per_token = group
    per_cta = -(-case.num_tokens * layer.num_kv_heads // card.num_sms)
    segment = -(-per_cta // step) * step
    lengths = [min(segment, q_len - first) for q_len, _ in case.seqs for first in range(0, q_len, segment)]
    keys = sum(length + layer.window - 1 for length in lengths)
    keys -= sum(max(0, layer.window - 1 - (context - q_len)) for q_len, context in case.seqs)
    dims = layer.head_dim + layer.v_head_dim
    rows = case.num_tokens * layer.num_kv_heads * rows_per_token
    macs = rows * spans(layer, tokens, grain) * dims
    scores = rows * spans(layer, warp_tokens, SLICE)  # what no row of a warp sees is left out
    kv_bytes = keys * layer.num_kv_heads * dims * case.kv_bytes
    rows_bytes = case.num_tokens * layer.num_q_heads * dims * case.element_bytes
    busy = busy_share(len(lengths) * layer.num_kv_heads, card.num_sms)
    return Work(kernel, rows_bytes + kv_bytes, rows_bytes + kv_bytes, macs, scores, busy, hopper)


def makespan(costs: list[float], num_sms: int) -> float:
    """When the last of the CTAs ends, each starting, in this order, on the SM that is free first."""
    free = [0.0] * num_sms
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def stream(kernel: str, case: Case, card: Card) -> Work | None:
    """`sm80_prefill` and `sm90_prefill`: a CTA per 128 rows, tiles of keys stream through; neighbours find them in L2."""
    layer, hopper = case.layer, kernel.startswith("sm90")
    group = layer.num_q_heads // layer.num_kv_heads
    if case.op != "prefill" or (hopper and (group > TILE or case.kv_bytes == 1)):
        return None
    window = layer.window or 1 << 30
    grain = (2 * TILE if layer.head_dim < 256 else TILE) if hopper else SLICE
    tokens, parts = (TILE // group, 2) if hopper else (max(1, SLICE // group), 8 if group <= SLICE else ROWS // group)
    step, rows = tokens * parts, ROWS // parts
    keys, scores, costs = 0, 0, []  # of one KV head
    for q_len, context in case.seqs:
        for first in range(context - q_len, context, step):
            firsts = range(first, min(first + step, context), tokens)
            ends = [min(f + tokens, first + step, context) for f in firsts]
            tiles = [-(-e // grain) - max(0, f - window + 1) // grain for f, e in zip(firsts, ends, strict=True)]
            keys += ends[-1] - max(0, first - window + 1)
            scores += rows * grain * sum(tiles)
            costs.append(max(tiles))
    heads = layer.num_kv_heads
    # The last tokens first: for all heads together on Hopper, else head by head.
    order = [c for c in reversed(costs) for _ in range(heads)] if hopper else costs[::-1] * heads
    busy = sum(order) / (makespan(order, card.num_sms) * card.num_sms)
    dims = layer.head_dim + layer.v_head_dim
    l2_bytes = case.num_tokens * layer.num_q_heads * dims * case.element_bytes + keys * heads * dims * case.kv_bytes
    return Work(kernel, case.bytes, l2_bytes, scores * heads * dims, scores * heads, busy, hopper)


def decode(case: Case, card: Card) -> Work | None:
    """`sm80_decode`: a CTA per sequence, KV head and split; products of 16 rows whatever the group has."""
    layer = case.layer
    if case.op != "decode":
        return None
    rows = -(-case.seqs[0][0] * (layer.num_q_heads // layer.num_kv_heads) // SLICE) * SLICE
    keys = sum(-(-k // SLICE) * SLICE + SLICE for k in case.visible_keys)
    splits = 1 if (layer.window or SPLIT + 1) <= SPLIT else -(-max(case.visible_keys) // SPLIT)
    scores = keys * rows * layer.num_kv_heads
    dims = layer.head_dim + layer.v_head_dim
    partials = 2 * 4 * splits * layer.v_head_dim * layer.num_q_heads * case.num_tokens if splits > 1 else 0
    busy = busy_share(len(case.seqs) * layer.num_kv_heads * splits, card.num_sms)
    return Work("sm80_decode", case.bytes + partials, case.bytes + partials, scores * dims, scores, busy, False)


@dataclass(frozen=True)
class Prediction:
    card: str
    case: str
    kernel: str
    memory_us: float
    products_us: float
    softmax_us: float
    overlapped_us: float
    serial_us: float


def predict(work: Work, case: Case, card: Card) -> Prediction:
    sms = card.num_sms * work.busy * card.hertz
    products = work.macs / (sms * card.macs * (1 if work.wgmma else card.mma_sync_share)) * 1e6
    softmax = work.scores * (1 / card.ex2 + INSTRUCTIONS_PER_SCORE / card.lanes) / sms * 1e6
    memory = max(work.hbm_bytes / card.bytes, work.l2_bytes / card.l2_bytes) * 1e6
    fixed = LAUNCH_US + FIRST_LOAD_US
    times = (memory, products, softmax, fixed + max(memory, products, softmax), fixed + max(memory, products + softmax))
    return Prediction(card.name, case.name, work.kernel, *(round(t, 2) for t in times))


def predictions() -> list[Prediction]:
    """Every kernel that takes a case, for every case without host pages, on every card."""
    found = []
    for card in CARDS:
        for case in all_cases():
            if case.host_seqs or (case.op == "prefill" and case.num_tokens < len(case.seqs)):
                continue
            walks = [walk(name, case, card) for name in ("sm90_swa_prefill", "sm80_swa_prefill")]
            streams = [stream(name, case, card) for name in ("sm90_prefill", "sm80_prefill")]
            works = [*walks, *streams, decode(case, card)]
            found += [predict(work, case, card) for work in works if work]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the predictions here, too")
    arguments = parser.parse_args()
    print(f"{'us':5}{'case':9}{'kernel':18}{'memory':>9}{'products':>9}{'softmax':>9}{'overlapped':>11}{'serial':>9}")
    rows = predictions()
    for r in rows:
        times = f"{r.memory_us:9.1f}{r.products_us:9.1f}{r.softmax_us:9.1f}{r.overlapped_us:11.1f}{r.serial_us:9.1f}"
        print(f"{r.card:5}{r.case:9}{r.kernel:18}{times}")
    if arguments.json:
        document = {"assumed": [asdict(card) for card in CARDS], "predicted": [asdict(r) for r in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
