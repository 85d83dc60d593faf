"""The benchmark's case table against numbers computed by hand from the shapes, at the ceilings of one card."""

from dataclasses import replace

import pytest

from bench.gpu.cases import H200_REPORTED, Ceilings, all_cases, first_visible, floor, visible_pairs

CASES = {case.name: case for case in all_cases()}
# name: GFLOP, MB, microseconds of MMA, HBM and exp, floor, what bounds it. None: too small to state.
TABLE = {
    "P1": (42.6, 377, 54.0, 87.8, 17.2, 87.8, "hbm"),
    "P2": (43.0, 378, 54.4, 87.9, 17.4, 87.9, "hbm"),
    "P3": (80.6, 755, 102.0, 175.6, 32.6, 175.6, "hbm"),
    "P4": (1374.6, 357, 1739.9, 82.9, 555.7, 1739.9, "mma"),
    "P5": (17.1, 151, 21.6, 35.1, 17.2, 35.1, "hbm"),
    "P6": (128.9, 201, 163.1, 46.8, 32.6, 163.1, "mma"),
    "P7": (16.6, 42, 21.1, 9.8, 4.2, 21.1, "mma"),
    "P8": (962.1, 336, 1217.9, 78.0, 486.2, 1217.9, "mma"),
    "D1-B1": (None, 0.7, None, 0.16, None, 1.35, "launch"),
    "D1-B16": (None, 11.1, None, 2.59, None, 2.59, "hbm"),
    "D1-B64": (0.34, 44.6, 0.4, 10.4, None, 10.4, "hbm"),
    "D1-B256": (1.34, 178, 1.7, 41.5, None, 41.5, "hbm"),
    "D2": (1.34, 53.4, 1.7, 12.4, 0.5, 12.4, "hbm"),
    "D3": (21.5, 1345, 27.2, 312.7, 8.7, 312.7, "hbm"),
    "D4-B64": (0.13, 17.8, None, 4.2, None, 4.2, "hbm"),
    "D4-B256": (0.54, 71.3, None, 16.6, None, 16.6, "hbm"),
    "D5": (1.07, 538, 1.4, 125.1, None, 125.1, "hbm"),
    "D6": (4.29, 1075, 5.4, 250.0, 2.2, 250.0, "hbm"),
    "D7": (0.34, 23.6, 0.4, 5.5, None, 5.5, "hbm"),
    "X1": (21.8, 234, 27.6, 54.4, 8.8, 54.4, "hbm"),
    "H4-B256": (1.34, 178, 1.7, 41.5, None, 41.2, "hbm"),  # of two sequences the link reads in the shadow of the others
}


def rounded_like(value, expected):
    """Equal after rounding to as many decimals as the table gives, off by one in the last at most."""
    decimals = len(str(expected).partition(".")[2]) if isinstance(expected, float) else 0
    return abs(value - expected) <= 1.01 * 10**-decimals


@pytest.mark.parametrize("name", TABLE)
def test_work_and_floor(name):
    case, (gflops, megabytes, mma, hbm, exp, us, bound_by) = CASES[name], TABLE[name]
    c = H200_REPORTED
    found = (case.flops / 1e9, case.bytes / 1e6, case.flops / c.flops * 1e6, case.bytes / c.bytes * 1e6)
    for value, expected in zip((*found, case.exps / c.exps * 1e6), (gflops, megabytes, mma, hbm, exp)):
        assert expected is None or rounded_like(value, expected)
    least = floor(case, c)
    assert rounded_like(least.us, us) and least.bound_by == bound_by


@pytest.mark.parametrize(
    "name, kib, us_52, us_35",
    [("H1-B1", 640, 12.6, 18.7), ("H2-B64", 64 * 256, 322.6, 479.3), ("H3-B64", 8 * 640, 100.8, 149.8)],
)
def test_host_link_cases(name, kib, us_52, us_35):
    case = CASES[name]
    assert case.link_bytes == kib * 1024
    for link, us in ((52e9, us_52), (35e9, us_35)):
        least = floor(case, replace(H200_REPORTED, link=link))
        assert rounded_like(least.us, us) and least.bound_by == "link"
    with pytest.raises(ValueError, match="host link"):
        floor(case, replace(H200_REPORTED, link=None))


def test_every_case_is_in_the_tables():
    assert set(CASES) == {*TABLE, "H1-B1", "H1-B64", "H2-B64", "H3-B64"}


def test_pairs_and_first_visible_key_at_the_edges():
    assert visible_pairs(4, 4, None) == 10
    assert visible_pairs(4, 4, 1) == 4
    assert visible_pairs(4, 4, 4) == visible_pairs(4, 4, 5) == 10
    assert visible_pairs(1, 100, 8) == 8 and visible_pairs(1, 5, 8) == 5
    assert visible_pairs(0, 9, 3) == 0
    assert [first_visible(2, 10, w) for w in (None, 1, 9, 10)] == [0, 8, 0, 0]


def test_one_number_of_new_tokens():
    assert CASES["D2"].q_len == 4
    with pytest.raises(ValueError):
        _ = CASES["X1"].q_len


def test_the_longest_of_the_times_is_the_floor():
    slow = Ceilings(bytes=1.0, flops=1.0, exps=1e-3, launch_seconds=0.0)
    assert floor(CASES["P1"], slow).bound_by == "exp"
