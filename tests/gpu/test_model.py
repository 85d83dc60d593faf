"""The model of the kernels' times: what it counts is what the emulator counts, and its times keep to what must hold."""

import json
from dataclasses import asdict, replace

import pytest

from bench.gpu.cases import GPT_OSS, MIMO_FULL, MIMO_SWA, MISTRAL, Ceilings, Layer, all_cases, decode_case, floor
from bench.gpu.libraries import ROOT
from bench.model import CARDS, KERNELS, Card, chosen, measured_card, predict, predictions
from bench.model.decode import sm80_decode, sm90_decode
from bench.model.prefill import sm80_swa_prefill, sm90_prefill, sm90_swa_prefill
from bench.model.work import makespan

CASES = {case.name: case for case in all_cases()}
H100, H200 = CARDS
MEASURED = Ceilings(bytes=4.2e12, flops=750e12, exps=132 * 16 * 1.6e9, launch_seconds=1.5e-6, link=48e9)
HOPPER = measured_card("a Hopper", MEASURED, 132, 228 << 10, 90)
A100 = measured_card("A100", Ceilings(1.8e12, 260e12, 108 * 16 * 1.4e9, 2e-6, 24e9), 108, 164 << 10, 80)


def time_of(case, card=H200):
    return predict(chosen(case, card), case, card)


def prefill_1x8192(layer, window):
    return replace(CASES["P1"], layer=replace(layer, window=window))


@pytest.mark.parametrize("kernel", [sm90_swa_prefill, sm80_swa_prefill])
@pytest.mark.parametrize("name", ["P1", "P5"])
def test_a_walk_counts_what_the_emulator_counts(kernel, name):
    """The figures of bench/counters.py for the same cases. Tiles at the start of the prompt are not modelled."""
    case = CASES[name]
    work = kernel(case, H200)
    assert (work.hbm_bytes - case.row_bytes) / (case.bytes - case.row_bytes) == pytest.approx(1.234, rel=0.01)
    visible = case.pairs * case.layer.num_q_heads
    assert visible * case.layer.dims / work.macs == pytest.approx(0.889, rel=0.02)
    assert visible <= work.scores < 1.2 * visible


@pytest.mark.parametrize(
    "layer, window, keys",
    [
        (MIMO_SWA, 129, 144),  # nine slices of three tiles
        (MIMO_SWA, 120, (4 * 144 + 128 + 3 * 192) / 8),  # every second step sees eight slices, with masks inside nine
        (MIMO_SWA, 130, (7 * 192 + 256) / 8),  # tile by tile
        (MIMO_SWA, 193, 256),
        (GPT_OSS, 257, 320),
        (MISTRAL, 257, 320),
    ],
)
def test_whole_tiles_are_multiplied_beyond_nine_slices(layer, window, keys):
    case = prefill_1x8192(replace(layer, num_q_heads=64, num_kv_heads=8), window)
    work = sm90_swa_prefill(case, H200)
    rows = case.num_tokens * 64
    assert work.macs / (rows * case.layer.dims) == pytest.approx(keys)


@pytest.mark.parametrize(
    "name, seq, kv_ratio, visible_share",
    [("P4", (2048, 2048), 132.0, 0.942), ("P8", (512, 6144), 14.45, 0.970), ("P6", (4096, 4096), 14.9, 0.941)],
)
def test_a_stream_counts_what_the_emulator_counts(name, seq, kv_ratio, visible_share):
    case = replace(CASES[name], seqs=(seq,))
    work = sm90_prefill(case, H200)
    assert (work.l2_bytes - case.row_bytes) / (case.bytes - case.row_bytes) == pytest.approx(kv_ratio, rel=0.03)
    assert case.flops / 2 / work.macs == pytest.approx(visible_share, rel=0.01)


UNEVEN, DEEP = (129, 1000, 517, 128, 300, 2048, 777, 4096), (8192, 5000)


@pytest.mark.parametrize("kernel", [sm90_decode, sm80_decode])
@pytest.mark.parametrize(
    "name, contexts, visible_share",
    [
        ("D1-B64", UNEVEN, 0.464),
        ("D2", UNEVEN, 0.906),
        ("D3", DEEP, 0.999),
        ("D5", UNEVEN, 0.124),
        ("D7", UNEVEN, 0.464),
    ],
)
def test_a_decode_counts_what_the_emulator_counts(kernel, name, contexts, visible_share):
    """The figures of bench/counters.py for sequences of the same lengths. The kernels leave out slices that one of several
    blocks of rows does not see, the model does not."""
    case = CASES[name]
    case = replace(case, seqs=tuple((case.q_len, context) for context in contexts))
    work = kernel(case, H200)
    assert case.flops / 2 / work.macs == pytest.approx(visible_share, rel=0.01)
    assert work.smem_bytes == work.macs / 16 * case.kv_bytes  # K and V once for every block of 16 rows


def test_the_longest_first_end_together():
    assert makespan([3, 3, 2, 2, 1, 1], 2) == 6
    assert makespan([1, 1, 2, 2, 3, 3, 6], 2) == 12


@pytest.mark.parametrize("card", [*CARDS, HOPPER, A100], ids=lambda card: card.name)
def test_no_prediction_is_below_the_floor_at_the_same_ceilings(card):
    macs, exps = (card.num_sms * card.hertz * rate for rate in (card.macs, card.ex2))
    ceilings = Ceilings(card.bytes, 2 * macs, exps, card.launch_us * 1e-6, card.link)
    found = predictions([card])
    assert {p.case for p in found} == set(CASES)
    for p in found:
        assert floor(CASES[p.case], ceilings).us < p.overlapped_us <= p.serial_us, p


ON_HOPPER = {
    "sm90_swa_prefill": "P1 P2 P3 P5 X1",
    "sm90_prefill": "P4 P6 P7 P8",
    "sm90_decode": "D1-B1 D1-B16 D1-B64 D1-B256 D2 D3 D4-B64 D4-B256 D5 D6 D7 H1-B1 H1-B64 H2-B64 H3-B64 H4-B256",
}
ON_AMPERE = {
    "sm80_swa_prefill": ON_HOPPER["sm90_swa_prefill"],
    "sm80_prefill": ON_HOPPER["sm90_prefill"],
    "sm80_decode": ON_HOPPER["sm90_decode"],
}


@pytest.mark.parametrize("card, kernels", [(HOPPER, ON_HOPPER), (A100, ON_AMPERE)], ids=["9.0", "8.0"])
def test_the_kernel_is_the_one_that_the_backend_picks(card, kernels):
    found = {name: chosen(case, card).kernel for name, case in CASES.items()}
    assert found == {name: kernel for kernel, names in kernels.items() for name in names.split()}


@pytest.mark.parametrize(
    "layer, window, kernel",
    [
        (MIMO_SWA, 193, "sm90_swa_prefill"),
        (MIMO_SWA, 194, "sm90_prefill"),
        (GPT_OSS, 257, "sm90_swa_prefill"),
        (GPT_OSS, 258, "sm90_prefill"),
        (MISTRAL, 257, "sm90_swa_prefill"),
        (MISTRAL, 258, "sm90_prefill"),
        (replace(MISTRAL, num_kv_heads=32), 257, "sm90_prefill"),  # 128 tokens a step: a slot more than there is room
        (replace(MIMO_SWA, num_kv_heads=1, num_q_heads=65), 128, "sm80_swa_prefill"),
    ],
)
def test_how_far_windows_go(layer, window, kernel):
    assert chosen(prefill_1x8192(layer, window), H200).kernel == kernel


def test_float8_prefill_goes_to_the_kernels_for_ampere():
    for name, kernel in (("P1", "sm80_swa_prefill"), ("P8", "sm80_prefill")):
        assert chosen(replace(CASES[name], kv_bytes=1), H200).kernel == kernel


def test_half_the_memory_bandwidth_doubles_the_time_in_memory():
    slow = replace(H200, bytes=H200.bytes / 2)
    for name in ("P1", "D1-B256"):
        assert time_of(CASES[name], slow).memory_us == pytest.approx(2 * time_of(CASES[name]).memory_us, rel=1e-3)


def test_float8_pages_take_less_of_memory_and_more_of_the_lanes():
    float8, bfloat16 = time_of(CASES["D7"]), time_of(CASES["D1-B64"])
    keys = CASES["D1-B64"].bytes - CASES["D1-B64"].row_bytes
    assert bfloat16.memory_us - float8.memory_us == pytest.approx(keys / 2 / H200.bytes * 1e6, rel=0.01)
    assert float8.softmax_us > 2 * bfloat16.softmax_us
    assert float8.overlapped_us < bfloat16.overlapped_us and float8.serial_us < bfloat16.serial_us


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_more_tokens_cost_little_more_than_their_own_bytes(batch):
    """Further rows are passes over the K and V that are there: a warp's chain of products once more, for one sequence."""
    cases = [decode_case("D1", MIMO_SWA, batch, 4096, q_len=q_len) for q_len in (1, 2, 3, 4)]
    one, *more = [time_of(case).overlapped_us for case in cases]
    for case, us in zip(cases[1:], more, strict=True):
        own = (case.row_bytes - cases[0].row_bytes) / H200.bytes * 1e6
        assert one <= us < one + own + (1.1 if batch == 1 else 0.7)


def test_rings_of_more_than_32_rows_ask_for_their_keys_again():
    """From L2. Resident ranges are there for any number of rows."""

    def times_asked(layer: Layer, q_len: int) -> float:
        case = decode_case("D", layer, 64, 4096, q_len=q_len)
        work = sm90_decode(case, H200)
        partials = work.hbm_bytes - case.bytes
        return (work.l2_bytes - partials - case.row_bytes) / (case.bytes - case.row_bytes)

    assert [times_asked(MIMO_FULL, q_len) for q_len in (1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4]
    assert [times_asked(replace(MIMO_SWA, num_kv_heads=4), q_len) for q_len in (1, 4, 8)] == [1, 1, 1]


def test_a_tiny_batch_is_a_chain_of_latencies():
    """Sixteen sequences on SMs of their own take as long as one, but for the bytes of memory."""
    one, sixteen = time_of(CASES["D1-B1"]), time_of(CASES["D1-B16"])
    assert sixteen.overlapped_us - one.overlapped_us == pytest.approx(sixteen.memory_us - one.memory_us, abs=0.1)
    assert one.memory_us == pytest.approx(CASES["D1-B1"].bytes / (8 * 64 * H200.hertz) * 1e6, abs=0.01)  # 8 SMs' ports
    assert one.overlapped_us > 4 * one.memory_us


def test_a_chained_combine_saves_most_of_a_launch():
    case = CASES["D3"]
    hopper, ampere = sm90_decode(case, H200), sm80_decode(case, H200)
    assert ampere.combine_us - hopper.combine_us == pytest.approx(0.75 * H200.launch_us)
    partials = 2 * 64 * 64 * 8 * 128 * 4
    assert hopper.hbm_bytes - case.bytes == ampere.hbm_bytes - case.bytes == partials
    assert sm90_decode(CASES["D1-B64"], H200).combine_us == 0


def test_two_ctas_on_an_sm_hide_what_one_cannot():
    case = CASES["D1-B256"]
    two, one = sm90_decode(case, H200), sm80_decode(case, H200)
    assert (two.per_sm, one.per_sm, two.starts, one.starts) == (2, 1, 8, 16)
    assert predict(two, case, H200).overlapped_us < 0.95 * predict(one, case, H200).overlapped_us


@pytest.mark.parametrize(
    "name, per_sm, loads_first",
    [("D1-B64", 2, True), ("D2", 2, True), ("D3", 2, False), ("D4-B64", 3, True), ("D5", 1, False), ("D7", 2, True)],
)
def test_how_many_ctas_an_sm_has_and_whether_the_range_is_resident(name, per_sm, loads_first):
    """By shared memory (D3, D5) and by registers (D4, D7). A ring's products are never all after its
    loads, a resident range's are where CTAs keep in step."""
    work = sm90_decode(CASES[name], H200)
    assert (work.per_sm, work.loads_first) == (per_sm, loads_first)
    found = predict(work, CASES[name], H200)
    waits = H200.launch_us + work.combine_us + work.starts * (1.5 + work.tail_us)
    in_turns = max(max(found.products_us, found.shared_us) + found.softmax_us, work.warp_us)
    assert found.serial_us == pytest.approx(waits + found.memory_us + (in_turns if loads_first else 0), abs=0.03)


def test_the_host_link_is_a_ceiling():
    for name in ("H1-B64", "H2-B64", "H3-B64"):
        case, found = CASES[name], time_of(CASES[name])
        assert found.link_us == pytest.approx(case.link_bytes / 50e9 * 1e6, rel=1e-3)
        assert found.link_us < found.overlapped_us < found.link_us + 6
        assert chosen(case, H200).hbm_bytes == case.bytes - case.link_bytes
    mixed = time_of(CASES["H4-B256"])
    assert mixed.link_us < mixed.memory_us < mixed.overlapped_us < mixed.memory_us + 6
    with pytest.raises(ValueError, match="host link"):
        time_of(CASES["H1-B1"], replace(H200, link=None))


def test_a_measured_card_has_the_ceilings_of_the_run():
    assert HOPPER.launch_us == 1.5 and HOPPER.link == MEASURED.link and HOPPER.hertz == pytest.approx(1.6e9)
    case = CASES["P4"]
    work = chosen(case, HOPPER)
    at_gemm_rate = 2 * work.macs / work.busy / MEASURED.flops * 1e6
    assert predict(work, case, HOPPER).products_us == pytest.approx(at_gemm_rate, rel=1e-3)
    work = chosen(case, A100)  # there a GEMM is made of mma.sync
    assert predict(work, case, A100).products_us == pytest.approx(2 * work.macs / work.busy / 260e12 * 1e6, rel=1e-3)


def test_the_file_of_predictions_is_what_the_model_says():
    """If not: python -m bench.model --json bench/results/model_h100_h200.json"""
    saved = json.loads((ROOT / "bench" / "results" / "model_h100_h200.json").read_text())
    assert saved["predicted"] == [asdict(p) for p in predictions()]
    assert saved["assumed"] == [asdict(card) for card in CARDS]
    assert {p["kernel"] for p in saved["predicted"]} == {kernel.__name__ for kernel in KERNELS}


def test_cards_without_hopper_instructions_run_none_of_its_kernels():
    later = Card("later", bytes=8e12, compute_capability=100)
    assert {chosen(case, later).kernel[:4] for case in CASES.values()} == {"sm80"}
