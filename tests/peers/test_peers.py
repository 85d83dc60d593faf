"""The machinery that runs other libraries' tests: it tells passed, failed and outside apart, each for the right reason."""

import argparse
import math

import peer_gradients
import peer_plugin
import peer_runner
import pytest
import torch
from peer_adapters import OutsideContract, Pages, attend_in_chunks, flash_attention, flash_infer, refuse, visible_window
from peer_standins import StandIn
from peer_suites import SUITES, Expected, File, Suite

from swa_attn import native

# A library's test file as this project would write one: a right use, a wrong expectation, a feature that is outside, a loop
# that does not end, a skip, gradients, and the same comparison with an adapter whose window is one too wide.
FAKE_TESTS = """
import pytest
import torch
import peer_adapters
from flash_attn import flash_attn_func, nothing_like_it
from peer_adapters import flash_attention

assert torch.cuda.get_device_capability() == (8, 0)
Q, K, V = torch.randn(3, 2, 40, 4, 32, device="cuda:0").to(0).cuda()


def expected(left):
    distance = torch.arange(40)[:, None] - torch.arange(40)
    heads = [x.transpose(1, 2) for x in (Q, K, V)]
    mask = (distance >= 0) & (distance <= left)
    return torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)


def check(left):
    torch.cuda.synchronize()
    out = flash_attn_func(Q, K, V, causal=True, window_size=(7, 0))
    assert torch.allclose(out, expected(left), atol=1e-5), "windows differ"


def test_right():
    check(7)


def test_wrong():
    check(6)


def test_planted_window(monkeypatch):
    window = peer_adapters.visible_window
    monkeypatch.setattr(flash_attention, "visible_window", lambda *args: window(*args) + 1)
    check(7)


def test_outside():
    flash_attn_func(Q, K, V, 0.5, causal=True)


def test_not_provided():
    nothing_like_it(Q)


def test_named():
    raise AssertionError("was run")


def test_endless():
    while True:
        pass


def test_skipped():
    pytest.skip("theirs")


@pytest.mark.parametrize("then", [7, 6])
def test_gradients(then):
    out = flash_attn_func(Q, K, V, causal=True, window_size=(7, 0))
    (gradient,) = torch.autograd.grad(out, (Q,), out)
    assert gradient.shape == Q.shape
    assert (gradient - 5).abs().max().item() <= 2 * (gradient - 3).abs().mean().item() - 1e9
    check(then)


@pytest.mark.parametrize("x", range(10))
@pytest.mark.parametrize("y", range(10))
def test_many(x, y):
    pass
"""
OUTCOMES = {
    "test_right": ("passed", ""),
    "test_wrong": ("failed", "AssertionError: windows differ"),
    "test_planted_window": ("failed", "AssertionError: windows differ"),
    "test_outside": ("outside", "dropout"),
    "test_not_provided": ("outside", "flash_attn.nothing_like_it()"),
    "test_named": ("outside", "not attention"),
    "test_endless": ("unfinished", "not done after 1 s"),
    "test_skipped": ("skipped", "theirs"),
    "test_gradients[7]": ("passed", ""),
    "test_gradients[6]": ("failed", "AssertionError: windows differ"),
}
FAKE = Suite(
    name="fake",
    marks=("fake/marker",),
    adapter="flash_attention",
    roots=("flash_attn", "flash_attn_interface"),
    files=(File("test_theirs.py", "8.0"),),
    outside=(("test_named", "not attention"),),
)


@pytest.fixture(scope="module")
def tally(tmp_path_factory):
    if native.unavailable():
        pytest.skip(str(native.unavailable()))
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "test_theirs.py").write_text(FAKE_TESTS)
    options = peer_runner.parse([str(checkout), "--seconds", "1", "--sample", "3"])
    return peer_runner.run_suite(FAKE, checkout, options)


def test_every_outcome_is_told_apart(tally):
    found = {line["id"].rpartition("::")[2]: (line["outcome"], line["reason"]) for line in tally.lines}
    for name, (outcome, reason) in OUTCOMES.items():
        assert found[name][0] == outcome, (name, found[name])
        assert found[name][1].startswith(reason), (name, found[name])


def test_a_pass_without_its_gradients_says_so(tally):
    forward_only = {line["id"].rpartition("::")[2] for line in tally.lines if line["forward_only"]}
    assert forward_only == {"test_gradients[7]"}


def test_a_sample_is_small_and_the_cases_are_counted(tally):
    assert sum("test_many" in line["id"] for line in tally.lines) == 3
    assert tally.cases == 100 + 2 + 8


def test_report_names_failures_and_counts(tally):
    text = peer_runner.report([tally])
    assert "FAILED fake" in text and "test_planted_window" in text
    assert "UNFINISHED fake" in text
    assert "| fake | no git | 110 | 13 | 5 | 1 | 3 | 3 | 1 | 1 |" in text
    assert "1  dropout" in text


def lines(*failures):
    return [dict(id=f"x::test_eq[{i}]", outcome="failed", reason=r, forward_only=False) for i, r in enumerate(failures)]


NEAR, FAR = (f"AssertionError: not close! Greatest absolute difference: {x}" for x in (0.004, 0.3))


@pytest.mark.parametrize(
    "failures, backend, level, unexpected",
    [
        ((NEAR, NEAR), "cpu", "avx512_bf16", 0),
        ((NEAR, FAR), "cpu", "avx512_bf16", 1),  # further off than rounding
        ((NEAR, NEAR, NEAR), "cpu", "avx512_bf16", 1),  # one more than there were
        (("TypeError: no",), "cpu", "avx512_bf16", 1),  # no comparison at all
        ((NEAR,), "cpu", "avx512", 1),  # a level that is exact enough
        ((NEAR,), "reference", "", 1),
    ],
)
def test_only_the_known_failures_are_expected(failures, backend, level, unexpected):
    suite = Suite("fake", (), "", (), (), expected=(Expected("test_eq", "cpu", "avx512_bf16", 2, 0.005, "rounding"),))
    tally = peer_runner.Tally(suite, "", backend, level, lines=lines(*failures))
    assert sum(expected is None for _, expected in tally.failures()) == unexpected


@pytest.mark.parametrize("failed, status", [((), 0), ((NEAR,), 1)])
def test_exit_status(monkeypatch, tmp_path, failed, status):
    passed = [dict(id="x::test_ok", outcome="passed", reason="", forward_only=False)]
    tally = peer_runner.Tally(FAKE, "", "cpu", "", lines=passed + lines(*failed))
    monkeypatch.setattr(peer_runner, "detect", lambda path: FAKE)
    monkeypatch.setattr(peer_runner, "run_suite", lambda *args: tally)
    assert peer_runner.main([str(tmp_path)]) == status
    tally.lines = lines()
    assert peer_runner.main([str(tmp_path)]) == 1  # nothing was decided


def test_a_file_that_dies_is_a_failure(monkeypatch, tmp_path):
    died = argparse.Namespace(returncode=-11, stdout="collected\n", stderr="Segmentation fault\n")
    monkeypatch.setattr(peer_runner.subprocess, "run", lambda *args, **options: died)
    options = argparse.Namespace(backend="cpu", all=False, sample=1, seed=0, seconds=1, keyword="")
    (line,) = peer_runner.run_file(FAKE, FAKE.files[0], tmp_path, options)
    assert line["outcome"] == "failed" and line["reason"] == "pytest ended with -11: Segmentation fault"


def test_detection_is_by_files(tmp_path):
    for suite in SUITES:
        checkout = tmp_path / suite.name
        for mark in suite.marks:
            (checkout / mark).parent.mkdir(parents=True, exist_ok=True)
            (checkout / mark).touch()
        assert peer_runner.detect(checkout) is suite
    with pytest.raises(SystemExit, match=r"expected a checkout of FlashAttention, FlashInfer, gpt-oss"):
        peer_runner.detect(tmp_path)


@pytest.mark.parametrize(
    "causal, left, right, longest, window",
    [
        (True, 7, None, 5, 8),
        (True, None, None, 5, None),
        (False, 0, 0, 5, 1),
        (False, 3, None, 1, 4),
        (False, 3, 9, 1, 4),
    ],
)
def test_windows_count_the_query_itself(causal, left, right, longest, window):
    assert visible_window(causal, left, right, longest) == window


@pytest.mark.parametrize(
    "causal, left, right, longest", [(False, None, None, 2), (False, 3, 1, 2), (True, -1, 0, 1), (False, 0, -1, 1)]
)
def test_masks_that_no_window_says(causal, left, right, longest):
    with pytest.raises(OutsideContract):
        visible_window(causal, left, right, longest)


def test_a_limit_waits_for_an_import(monkeypatch, tmp_path):
    """A module whose import takes longer than the limit is imported whole, and the limit still ends what follows it."""
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.3)\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(peer_plugin.Unfinished), peer_plugin._limit(0.05):
        import slow_module

        while True:
            pass
    assert slow_module.whole


def test_refusals_look_at_values():
    refuse(dropout=0.0, mask=None, rotary="NONE", graphs=False)
    with pytest.raises(OutsideContract, match="rotary inside"):
        refuse(rotary_inside=torch.zeros(2))
    with pytest.raises(OutsideContract, match=r"flashinfer\.gemm\.bmm"):
        StandIn("flashinfer").gemm.bmm(1)
    assert StandIn("flashinfer").is_sm12x_supported() is False


def masked(q, k, v, mask):
    heads = (x.double().transpose(-3, -2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
    return torch.where(mask.any(-1)[:, None], out, 0.0).transpose(-3, -2).float()


@pytest.mark.parametrize("chunk", [1, 3, 8, 40])
def test_chunks_do_not_see_each_other(chunk):
    """Against a dense mask; more queries than keys, so that some positions are negative."""
    torch.manual_seed(0)
    q, (k, v) = torch.randn(9 + 5, 4, 16), torch.randn(2, 12, 2, 16)
    out, _ = attend_in_chunks(q, torch.tensor([0, 14]), Pages.dense(k[None], v[None]), chunk, window=6)
    position, key = torch.arange(-2, 12)[:, None], torch.arange(12)
    mask = (position >= key) & (position - key < 6) & (position // chunk == key // chunk)
    torch.testing.assert_close(out, masked(q, k, v, mask))


def test_left_padding_batch_index_and_append_in_a_paged_cache():
    """The three things a cache function does at once, on pages of 4, against the plain attention over the gathered keys."""
    torch.manual_seed(0)
    k_cache, v_cache = torch.randn(2, 12, 4, 2, 16)
    table = torch.randperm(12).view(4, 3).int()
    new_k, new_v, q = torch.randn(2, 3, 2, 16), torch.randn(2, 3, 2, 16), torch.randn(2, 3, 4, 16)
    used, pad, rows = torch.tensor([5, 9]).int(), torch.tensor([2, 5]).int(), torch.tensor([3, 1]).int()
    options = dict(cache_seqlens=used, cache_leftpad=pad, cache_batch_idx=rows, page_table=table, causal=True)
    out = flash_attention.flash3_with_kvcache(q, k_cache, v_cache, new_k, new_v, **options, window_size=(4, -1))
    for i in range(2):
        k, v = (x[table[rows[i]].long()].flatten(0, 1)[: used[i] + 3] for x in (k_cache, v_cache))
        assert torch.equal(k[-3:], new_k[i]) and torch.equal(v[-3:], new_v[i])
        position, key = torch.arange(int(used[i]), int(used[i]) + 3)[:, None], torch.arange(len(k))
        mask = (position >= key) & (position - key <= 4) & (key >= pad[i])
        torch.testing.assert_close(out[i], masked(q[i], k, v, mask))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_compressed_tables_layouts_and_base_two_logarithms(layout):
    """An empty sequence among others; K and V as two halves of one tensor."""
    torch.manual_seed(0)
    cache = torch.randn(6, 2, 4, 2, 16)
    q, indptr = torch.randn(3, 4, 16), torch.tensor([0, 2, 2, 5]).int()
    indices, last = torch.tensor([5, 0, 3, 1, 2]).int(), torch.tensor([1, 0, 4]).int()
    wrapper = flash_infer.BatchDecodeWithPagedKVCacheWrapper(None, layout)
    wrapper.plan(indptr, indices, last, 4, 2, 16, 4, window_left=6)
    given = cache.transpose(2, 3).contiguous() if layout == "HND" else cache
    out, lse = wrapper.run(q, given, return_lse=True)
    assert (out[1] == 0).all() and (lse[1] == -math.inf).all()
    for i, pages, length in ((0, [5, 0], 5), (2, [3, 1, 2], 12)):
        k, v = (cache[pages, part].flatten(0, 1)[:length] for part in (0, 1))
        mask = (torch.arange(length) >= length - 7)[None]
        torch.testing.assert_close(out[i : i + 1], masked(q[i : i + 1], k, v, mask))
        scores = (q[i].view(2, 2, 16) @ k[-7:].permute(1, 2, 0)).flatten(0, 1) / 4
        torch.testing.assert_close(lse[i], scores.logsumexp(-1) / math.log(2))


def test_gradients_compare_as_right_and_nothing_else_does():
    gradient = torch.zeros(3).as_subclass(peer_gradients.NotComputed)
    assert (gradient - 1).abs().max().item() <= -1e9 and torch.equal(gradient, torch.ones(3))
    assert not gradient.isnan().any()
    assert not torch.equal(torch.zeros(3), torch.ones(3))


def test_the_docs_list_every_expected_failure():
    text = (peer_runner.ROOT / "docs" / "peer_suites.md").read_text()
    for suite in SUITES:
        for e in suite.expected:
            where = ", ".join(filter(None, (e.backend, e.level)))
            assert f"| {suite.name} `{e.part}` | {where} | {e.at_most} | {e.within:g} | {e.why} |" in text
