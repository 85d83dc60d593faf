"""The detector on tiny kernels: each mistake gives its report, each correct variant none."""

import pytest
import torch

from swa_attn.testing.emulator import Options, Run, reads, writes

# Case of kernels/detector_*.cpp -> kind of report, None for a clean run; where the schedule decides, several kinds.
CASES = {
    "two_warps_write_one_word": "write-after-write",
    "two_warps_write_their_words": None,
    "read_of_neighbour": "read-after-write",
    "read_of_neighbour_after_sync_warp": None,
    "read_of_other_warp_after_sync_warp": "read-after-write",
    "read_of_other_warp_after_barrier": None,
    "shuffle_is_no_fence": "read-after-write",
    "write_after_read": "write-after-read",
    "write_after_read_and_barrier": None,
    "halves_of_a_word_race": "read-after-write",
    "halves_of_a_word_by_two_threads": None,
    "half_warps_with_masks": None,
    "half_warps_wrong_mask": "read-after-write",
    "uninitialized": "uninitialized",
    "shared_out_of_bounds": "out-of-bounds",
    "shared_below_start": "out-of-bounds",
    "shared_offset_as_address": "out-of-bounds",
    "shared_misaligned": "misaligned",
    "wild_pointer": "memory-fault",
    "global_read": None,
    "global_read_past_end": "out-of-bounds",
    "global_read_before_start": "out-of-bounds",
    "global_pointer_past_end": "out-of-bounds",
    "global_write": None,
    "global_write_past_end": "out-of-bounds",
    "global_write_to_input": "read-only",
    "global_misaligned": "misaligned",
    "cp_async": None,
    "cp_async_not_waited_for": "in-flight",
    "cp_async_not_committed": "in-flight",
    "cp_async_one_group_too_few": "in-flight",
    "cp_async_no_barrier": "read-after-write",
    "cp_async_overwritten_in_flight": "in-flight",
    "cp_async_into_words_being_read": "write-after-read",
    "cp_async_at_exit": "never-waited",
    "cp_async_zero_fill_reads_nothing": None,
    "cp_async_source_past_end": "out-of-bounds",
    "cp_async_misaligned": "misaligned",
    "cp_async_bad_size": "invalid",
    "ldmatrix": None,
    "ldmatrix_race": "read-after-write",
    "ldmatrix_misaligned": "misaligned",
    "stmatrix": None,
    "stmatrix_race": "read-after-write",
    "barrier_missed_by_threads": "deadlock",
    "barrier_on_two_lines": "divergence",
    "barrier_skipped_by_a_warp": "deadlock",
    "barrier_per_warp_lines": None,
    "named_barrier_producer_consumer": None,
    "named_barrier_reader_only_arrives": "read-after-write",
    "named_barrier_odd_count": "barrier",
    "named_barrier_two_counts": "barrier",
    "named_barrier_bad_id": "barrier",
    "named_barrier_arrive_twice": "barrier",
    "shuffle_with_missing_lanes": "deadlock",
    "shuffle_of_half_a_warp": None,
    "shuffle_from_outside_the_mask": "divergence",
    "shuffle_not_in_own_mask": "divergence",
    "collectives_differ": "divergence",
    "ldmatrix_on_two_lines": "divergence",
    "mma_missing_lanes": "deadlock",
    "early_exit_then_collective_of_the_rest": None,
    "mbarrier": None,
    "mbarrier_reader_does_not_wait": ("read-after-write", "write-after-read"),
    "mbarrier_previous_parity_returns_at_once": None,
    "mbarrier_wrong_parity": "deadlock",
    "mbarrier_polling": None,
    "mbarrier_never_initialized": "mbarrier",
    "mbarrier_count_too_high": "deadlock",
    "mbarrier_arrival_in_next_phase": None,
    "mbarrier_unsynchronized_init": "mbarrier",
    "mbarrier_overwritten": "mbarrier",
    "mbarrier_initialized_twice": "mbarrier",
    "mbarrier_initialized_again_after_inval": None,
    "mbarrier_zero_count": "invalid",
    "mbarrier_misaligned": "misaligned",
    "cluster_remote_arrival": None,
    "cluster_remote_arrival_before_init_is_known": "mbarrier",
    "cluster_peer_exited": "exited-peer",
    "cluster_peer_may_have_exited": "exited-peer",
    "cluster_rank_outside": "invalid",
    "cluster_barrier_missed": "deadlock",
    "bulk_load": None,
    "bulk_load_not_waited_for": ("in-flight", "read-after-write"),
    "bulk_load_barrier_not_fenced": "mbarrier-fence",
    "bulk_load_too_many_bytes_expected": "deadlock",
    "bulk_load_no_bytes_expected": "never-waited",
    "bulk_load_over_words_being_read": ("write-after-read", "in-flight", "deadlock"),
    "bulk_load_over_words_read_before_barrier": None,
    "bulk_load_over_generic_write": "proxy-fence",
    "bulk_load_over_fenced_generic_write": None,
    "bulk_load_source_past_end": "out-of-bounds",
    "bulk_load_odd_size": "misaligned",
    "bulk_store": None,
    "bulk_store_not_fenced": "proxy-fence",
    "bulk_store_fenced_by_the_wrong_thread": "proxy-fence",
    "bulk_store_source_overwritten": "write-after-read",
    "bulk_store_source_overwritten_after_wait": None,
    "bulk_store_never_waited_for": "never-waited",
    "bulk_store_to_input": "read-only",
    "tma_store": None,
    "tma_store_not_fenced": "proxy-fence",
    "tma_store_source_overwritten": "write-after-read",
    "tma_store_never_waited_for": "never-waited",
    "grid_waited_for": None,
    "grid_output_read_too_early": "grid-dependency",
    "grid_output_written_too_early": "grid-dependency",
    "grid_output_read_as_constant": "grid-dependency",
    "grid_waited_for_by_one_thread": "grid-dependency",
    "cp_async_mbarrier": None,
    "cp_async_mbarrier_not_waited_for": ("in-flight", "read-after-write"),
    "tma_map_not_encoded": "invalid",
    "wgmma": None,
    "wgmma_operand_not_fenced": "proxy-fence",
    "wgmma_without_fence": "wgmma",
    "wgmma_accumulator_touched_in_flight": "wgmma",
    "wgmma_never_waited_for": "never-waited",
    "wgmma_operand_overwritten_in_flight": "write-after-read",
    "wgmma_operand_overwritten_after_wait": None,
    "wgmma_warps_differ": "divergence",
    "wgmma_lanes_differ": "wgmma",
    "wgmma_start_off_the_pattern": "wgmma",
}
WORDS = 1024


def aligned_words(value: int) -> torch.Tensor:
    """1024 words at an address that every vector access may start at."""
    storage = torch.full((WORDS + 64,), value, dtype=torch.int32)
    skip = -storage.data_ptr() // 4 % 64
    return storage[skip : skip + WORDS]


def detect(emulator, name: str, options: Options) -> Run:
    return emulator.launch(
        f"detector/{name}", options, source=reads(aligned_words(3), "source"), sink=writes(aligned_words(0))
    )


def test_every_case_is_listed(emulator):
    assert {name.removeprefix("detector/") for name in emulator.kernels if name.startswith("detector/")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_reports(emulator, case):
    kinds = CASES[case]
    kinds = {kinds} if isinstance(kinds, str) else set(kinds or ())
    # Every schedule shows the fault, and a correct kernel has none under any.
    for asynchrony, order in (("lazy", "forward"), ("eager", "reverse"), ("random", "random")):
        run = detect(emulator, case, Options(asynchrony, order))
        assert run.kinds & kinds if kinds else not run.reports, (asynchrony, order, run.reports)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c, kind in CASES.items() if kind is None])
def test_correct_kernels_are_clean_under_many_schedules(emulator, case):
    for seed in range(1, 101):
        detect(emulator, case, Options("random", "random", seed=seed)).check()


def test_a_race_names_both_lines(emulator):
    report = next(r for r in detect(emulator, "read_of_neighbour", Options()).reports if r.kind == "read-after-write")
    assert report.file == report.other_file == "detector_memory.cpp"
    assert report.line == report.other_line + 1 and report.other_line > 0
    assert report.block == (0, 0, 0) and report.thread >= 0
    assert f"detector_memory.cpp:{report.line}" in report.text and "read-after-write" in report.text


def test_a_deadlock_says_who_waits_for_what(emulator):
    (report,) = detect(emulator, "barrier_missed_by_threads", Options()).reports
    assert "threads 0-39: block (0,0,0): waiting at barrier 0 (40 of 64 arrived) detector_sync.cpp:" in report.text
    assert "threads 40-63: block (0,0,0): exited" in report.text
    (report,) = detect(emulator, "mbarrier_count_too_high", Options()).reports
    assert "pending arrivals 1 of 33" in report.text


def test_out_of_bounds_names_the_nearest_buffer(emulator):
    (report,) = detect(emulator, "global_read_past_end", Options()).reports
    assert "'source' ends 0 bytes before" in report.text


def test_cp_async_and_the_proxy_check_can_be_relaxed(emulator):
    run = detect(emulator, "bulk_load_over_generic_write", Options(cp_async_proxy=False))
    assert run.kinds == {"proxy-fence"}  # an ordinary store still needs the fence


def test_the_race_checker_can_be_switched_off(emulator):
    assert not detect(emulator, "two_warps_write_one_word", Options(race=False)).reports


def test_one_report_per_pair_of_lines(emulator):
    run = detect(emulator, "two_warps_write_one_word", Options())  # 32 words, 32 pairs of threads
    assert run.num_distinct_reports == len(run.reports) == 1
