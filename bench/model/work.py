"""From what a launch does to how long it should take."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from bench.gpu.cases import Case

from .card import Card

SLICE = 16  # keys, and rows of mma.sync: the grain of sm_80's kernels and of decode
LOOKUP_US = 0.8  # two loads of which the second needs the first: a length, an entry of the block table
LOAD_US, HOST_LOAD_US = 0.7, 1.5  # a tile from device memory, rows across the host link
# ex2 not counted. mma.sync: scale, maximum, subtract, add, half a conversion, bookkeeping. wgmma: the scale is part of the
# subtraction, and bookkeeping goes by tiles.
SCORE_INSTRUCTIONS, WGMMA_SCORE_INSTRUCTIONS = 6, 4.5
INSTRUCTIONS_PER_CONVERSION = 2  # of an element of float8, by the hardware's conversion of pairs


@dataclass(frozen=True)
class Work:
    """What the CTAs of a launch do together, and how they follow one another."""

    kernel: str
    wgmma: bool
    hbm_bytes: float
    l2_bytes: float  # that SMs ask for, wherever they come from
    macs: float  # multiply-adds issued
    scores: float  # that go through the softmax
    smem_bytes: float  # operands that products read from shared memory
    busy: float  # share of the SM-rounds that have a CTA
    starts: float  # CTAs one after another in one place on an SM
    score_instructions: float = SCORE_INSTRUCTIONS
    per_sm: int = 1  # CTAs at the same time on an SM
    link_bytes: float = 0.0
    conversions: float = 0.0  # elements of float8 that are widened
    warp_us: float = 0.0  # a warp's slices one after another, with the latencies of their products
    tail_us: float = 0.0  # of a CTA from its last byte on
    combine_us: float = 0.0  # of a second kernel
    loads_first: bool = False  # a CTA's products may have to wait for all of its bytes


@dataclass(frozen=True)
class Prediction:
    card: str
    case: str
    kernel: str
    memory_us: float
    link_us: float
    products_us: float
    shared_us: float
    softmax_us: float  # with the conversions of float8
    overlapped_us: float
    serial_us: float


def predict(work: Work, case: Case, card: Card) -> Prediction:
    """Both times. Nothing hides the launch, the first CTA's first load and the last one's tail.

    overlapped: memory, host link, products, operands from shared memory and softmax are in each other's shadow, the longest
                counts. CTAs in one place on an SM follow one another all the same, each with its first load and its tail,
                and do at least their share of the SM's work in between.
    serial:     products and softmax take turns, and each CTA's first load and tail are waited for. Memory and link are in
                their shadow, except where products may have to wait for all bytes of a CTA and all CTAs keep in step.
    """
    sms = card.num_sms * work.busy * card.hertz
    products = work.macs / (sms * card.macs * (1 if work.wgmma else card.mma_sync_share)) * 1e6
    shared = work.smem_bytes / (sms * card.smem_port) * 1e6
    lane_work = work.scores * work.score_instructions + work.conversions * INSTRUCTIONS_PER_CONVERSION
    softmax = (work.scores / card.ex2 + lane_work / card.lanes) / sms * 1e6
    port = work.l2_bytes / (sms * card.l2_port) * 1e6
    memory = max(work.hbm_bytes / card.bytes * 1e6, work.l2_bytes / card.l2_bytes * 1e6, port)
    link = link_us(work, card)

    ends = LOOKUP_US + (HOST_LOAD_US if work.link_bytes else LOAD_US) + work.tail_us  # of the launch
    of_cta = LOOKUP_US + LOAD_US + work.tail_us
    loads = max(memory, link)
    of_sm = max(port, products, shared, softmax, work.warp_us)
    overlapped = max(ends + max(loads, of_sm), work.starts * of_cta + of_sm / work.per_sm)
    in_turns = max(max(products, shared) + softmax, work.warp_us)
    serial = ends + (work.starts - 1) * of_cta
    serial += loads + in_turns if work.loads_first else max(loads, in_turns)
    outside = card.launch_us + work.combine_us
    times = (memory, link, products, shared, softmax, outside + overlapped, outside + serial)
    return Prediction(card.name, case.name, work.kernel, *(round(t, 2) for t in times))


def link_us(work: Work, card: Card) -> float:
    if not work.link_bytes:
        return 0.0
    if card.link is None:
        raise ValueError(f"{work.kernel} reads host pages: its time needs the host link's ceiling")
    return work.link_bytes / card.link * 1e6


def mma_sync_operands(macs: float, case: Case) -> dict[str, float]:
    """K and V pass through registers once for every 16 rows: from shared memory, widened if they are float8."""
    elements = macs / SLICE
    return {"smem_bytes": elements * case.kv_bytes, "conversions": elements if case.kv_bytes == 1 else 0.0}


def busy_share(ctas: int, num_sms: int) -> float:
    """Of the rounds that equal CTAs make."""
    return ctas / (-(-ctas // num_sms) * num_sms)


def makespan(costs: Iterable[float], num_sms: int) -> float:
    """When the last of the CTAs ends, each starting, in this order, on the SM that is free first."""
    free = [0.0] * num_sms
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def scheduled(costs: list[float], card: Card) -> dict[str, float]:
    """For CTAs of these costs in the order of the grid, one per SM at a time."""
    busy = sum(costs) / (makespan(costs, card.num_sms) * card.num_sms)
    return {"busy": busy, "starts": max(1.0, len(costs) / card.num_sms)}
