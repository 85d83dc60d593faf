"""The counters on access patterns whose cost is known, and on an attention kernel whose cost can be derived."""

import pytest
import torch
from emulated_attention import ALL_POLICIES, HEAD_DIM, Case, Inputs, run_attention

from swa_attn.testing.emulator import Options, Traffic, reads, writes


def page_aligned(num_bytes):
    storage = torch.zeros(num_bytes + 4096, dtype=torch.uint8)
    skip = -storage.data_ptr() % 4096
    return storage[skip : skip + num_bytes]


def global_loads(emulator, stride, times=1, active_lanes=32, options=None):
    run = emulator.launch(
        "counted/global_loads",
        options,
        **{"in": reads(page_aligned(4096 * times), "device_pages")},
        out=writes(torch.zeros(32, dtype=torch.int32)),
        stride=stride,
        times=times,
        active_lanes=active_lanes,
    ).check()
    return run.counters.traffic(tag="device_pages")


@pytest.mark.parametrize(
    "stride, num_bytes, sectors, min_sectors",
    [(4, 128, 4, 4), (0, 4, 1, 1), (8, 128, 8, 4), (32, 128, 32, 4), (64, 128, 32, 4), (128, 128, 32, 4)],
)
def test_sectors_of_a_load(emulator, stride, num_bytes, sectors, min_sectors):
    assert global_loads(emulator, stride) == Traffic(1, 32, num_bytes, sectors, min_sectors, 0, 0)


def test_requests_of_a_loop_are_told_apart(emulator):
    assert global_loads(emulator, 4, times=5) == Traffic(5, 160, 5 * 128, 20, 20, 0, 0)


def test_partly_active_warps(emulator):
    assert global_loads(emulator, 4, times=2, active_lanes=5) == Traffic(2, 10, 40, 2, 2, 0, 0)


def test_open_requests_do_not_pile_up(emulator):
    """More requests with inactive lanes than are kept open: none is lost."""
    assert global_loads(emulator, 4, times=5000, active_lanes=31) == Traffic(5000, 155000, 620000, 20000, 20000, 0, 0)


@pytest.mark.parametrize(
    "width, stride, wavefronts, min_wavefronts",
    [
        (4, 4, 1, 1),
        (4, 0, 1, 1),  # one word for all
        (4, 8, 2, 1),
        (4, 128, 32, 1),
        (4, 132, 1, 1),  # a padded column
        (8, 8, 2, 2),
        (8, 16, 4, 2),
        (16, 16, 4, 4),
        (16, 32, 8, 4),
        (16, 128, 32, 4),
        (16, 144, 4, 4),  # a padded row
    ],
)
def test_wavefronts_of_shared_accesses(emulator, width, stride, wavefronts, min_wavefronts):
    options = Options(race=stride != 0)  # stride 0: all lanes write one word, a race on purpose
    run = emulator.launch(f"counted/shared_{width}", options, stride=stride).check()
    for op in ("shared_store", "shared_load"):
        assert run.counters.traffic(ops=op) == Traffic(1, 32, 0, 0, 0, wavefronts, min_wavefronts)
        assert run.counters.bank_conflicts(op) == wavefronts - min_wavefronts
    assert run.counters.bank_conflicts() == 2 * (wavefronts - min_wavefronts)


@pytest.mark.parametrize("stride, wavefronts", [(16, 4), (128, 32), (144, 4), (32, 8), (256, 32)])
def test_wavefronts_of_ldmatrix(emulator, stride, wavefronts):
    run = emulator.launch("counted/ldmatrix", stride=stride).check()
    assert run.counters.traffic(ops="ldmatrix") == Traffic(1, 32, 0, 0, 0, wavefronts, 4)


def cp_async(emulator, split, end, stride=16):
    pages = page_aligned(1024)
    return emulator.launch(
        "counted/cp_async",
        device_pages=reads(pages[:512], "device_pages"),
        host_pages=reads(pages[512:], "host_pages"),
        split=split,
        end=end,
        stride=stride,
    ).check()


def test_tags_of_one_request(emulator):
    counters = cp_async(emulator, split=24, end=32).counters
    assert counters.bytes_read("device_pages") == 24 * 16
    assert counters.bytes_read("host_pages") == 8 * 16
    assert counters.bytes_read() == 512 and counters.bytes_written() == 0
    assert counters.traffic().sectors == counters.traffic().min_sectors == 16
    assert counters.traffic().wavefronts == counters.traffic().min_wavefronts == 4


def test_zero_filled_lanes_read_nothing(emulator):
    counters = cp_async(emulator, split=32, end=3, stride=128).counters
    assert counters.traffic() == Traffic(1, 32, 48, 2, 2, 32, 4)
    counters = cp_async(emulator, split=32, end=0).counters
    assert counters.traffic() == Traffic(1, 32, 0, 0, 0, 4, 4)


def test_arithmetic(emulator):
    out = torch.zeros(64)
    tallies = emulator.launch("counted/arithmetic", out=writes(out)).check().counters.tallies
    assert tallies["mma"] == 2 * 3 and tallies["mma_macs"] == 2 * 3 * 16 * 8 * 16
    assert tallies["ex2"] == 64 * 5 and tallies["barriers"] == 2 and tallies["shuffles"] == 0


CASE = Case(((100, 300), (1, 513), (130, 130)), 4, 2, 128)


@pytest.fixture(scope="module")
def inputs():
    return Inputs(CASE)


@pytest.mark.parametrize("kernel", ["fa_sm80", "fa_sm90"])
def test_counters_do_not_depend_on_the_schedule(emulator, inputs, kernel):
    expected = run_attention(emulator, kernel, inputs, Options())[0].check().counters
    for asynchrony, order in ALL_POLICIES[1:]:
        for race in (True, False):
            options = Options(asynchrony, order, race=race)
            assert run_attention(emulator, kernel, inputs, options)[0].counters == expected


def tiles_of(case, block_m, block_n=64):
    """(first, last) KV tile of every CTA of one head, as the test kernels choose them."""
    for q_len, k_len in case.sequences:
        for m0 in range(0, q_len, block_m):
            first = k_len - q_len + m0
            last = min(first + block_m, k_len) - 1
            yield max(0, first - case.window + 1) // block_n, last // block_n, k_len


@pytest.mark.parametrize("kernel, block_m", [("fa_sm80", 64), ("fa_sm90", 128)])
def test_traffic_and_work_of_attention(emulator, inputs, kernel, block_m):
    counters = run_attention(emulator, kernel, inputs, Options())[0].check().counters
    tiles = list(tiles_of(CASE, block_m))
    row_bytes, heads = HEAD_DIM * 2, CASE.num_q_heads
    if kernel == "fa_sm80":  # reads rows below seqlen_k of each tile
        rows = sum(min((last + 1) * 64, k_len) - first * 64 for first, last, k_len in tiles)
    else:  # reads whole pages
        rows = sum(min((last + 1) * 64, -(-k_len // 16) * 16) - first * 64 for first, last, k_len in tiles)
    assert counters.bytes_read("device_pages") == 2 * rows * row_bytes * heads
    if kernel == "fa_sm80":  # the other one loads the queries of whole tiles
        assert counters.bytes_read("queries") == CASE.total_q * heads * row_bytes
    assert counters.bytes_written() == counters.bytes_written("outputs") == CASE.total_q * heads * row_bytes
    num_tiles = sum(last - first + 1 for first, last, _ in tiles) * heads
    assert counters.tallies["mma_macs"] == num_tiles * block_m * 64 * 2 * HEAD_DIM
    useful = CASE.visible_pairs() * heads * 2 * HEAD_DIM
    assert counters.useful_mma_share(useful) == pytest.approx(CASE.visible_pairs() / (num_tiles / heads * block_m * 64))
    # K/V loads and stores are as wide as they can be, and the swizzle leaves no bank conflicts.
    pages = counters.traffic(tag="device_pages")
    assert pages.sectors == pages.min_sectors
    assert counters.bank_conflicts() == 0
    assert counters.tallies["ex2"] == num_tiles * block_m * (64 + 4)  # a correction per row and quad lane


def test_another_swizzle_has_conflicts(emulator, inputs):
    counters = run_attention(emulator, "fa_sm80", inputs, Options(bug=3))[0].counters
    assert counters.bank_conflicts("ldmatrix") > 0
    site = max((s for s in counters.sites if s.op == "ldmatrix"), key=lambda s: s.traffic.bank_conflicts)
    assert site.file == "fa_sm80.cuh" and site.traffic.wavefronts == 2 * site.traffic.min_wavefronts


def test_counters_can_be_left_out(emulator, inputs):
    counters = run_attention(emulator, "fa_sm80", inputs, Options(counters=False))[0].check().counters
    assert not counters.sites


def test_json(emulator, inputs):
    counters = run_attention(emulator, "fa_sm80", inputs, Options())[0].counters
    again = run_attention(emulator, "fa_sm80", inputs, Options("random", "random"))[0].counters
    assert counters.to_json() == again.to_json()
