"""Wrong page ids, slots, lengths and query bounds: IndexError by name, before anything is written."""

from dataclasses import replace

import pytest
import torch
from fitting import fit

import swa_attn
from swa_attn import _check_values
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build

NAN = float("nan")
BASE = AttentionCase(seqs=((2, 9), (2, 14)), host=0.5)


@pytest.fixture(params=[False, True], ids=["off", "on"])
def looks(request, backend, monkeypatch):
    """Both states of the switch; off, only the backends that look at values by themselves are asked."""
    if not request.param and backend not in ("reference", "cpu"):
        pytest.skip("this backend looks at values only when asked to")
    monkeypatch.setenv(_check_values.VARIABLE, str(int(request.param)))
    return request.param


def last_page(inputs, sequence=0):
    return (int(inputs.seqlens_k[sequence]) - 1) // inputs.case.page_size


def set_page(page):
    def change(inputs):
        number = inputs.k_cache.shape[0] + inputs.options["k_host_cache"].shape[0] if page == "beyond" else page
        inputs.block_table[0, last_page(inputs)] = number

    return change


def set_values(name, values):
    def change(inputs):
        getattr(inputs, name).copy_(torch.tensor(values))

    return change


WRONG = {  # what is done to the inputs of BASE, what the message says
    "absent page": (set_page(-1), r"block_table\[0, \d+\] = -1 holds a visible key but is not a page id of 0..\d+"),
    "page beyond the host's": (set_page("beyond"), r"block_table\[0, \d+\] = \d+ holds a visible key"),
    "largest page id": (set_page(2**31 - 1), r"block_table\[0, \d+\] = 2147483647 holds a visible key"),
    "negative length": (
        set_values("seqlens_k", [9, -1]),
        r"seqlens_k\[1\] must be at least 0 and at most \d+ .*got -1",
    ),
    "smallest length": (
        set_values("seqlens_k", [-(2**31), 14]),
        r"seqlens_k\[0\] must be at least 0 .*got -2147483648",
    ),
    "length beyond the table": (set_values("seqlens_k", [9, 99]), r"seqlens_k\[1\] must be .*at most \d+ .*got 99"),
    "largest length": (set_values("seqlens_k", [2**31 - 1, 14]), r"seqlens_k\[0\] must be .* got 2147483647"),
}
WRONG_BOUNDS = {
    "starts later": ([1, 2, 4], r"cu_seqlens_q must rise from 0 to at most 4, got 1, 2 at 0"),
    "starts before": ([-1, 2, 4], r"cu_seqlens_q must rise from 0 to at most 4, got -1, 2 at 0"),
    "falls": ([0, 4, 2], r"cu_seqlens_q must rise from 0 to at most 4, got 4, 2 at 1"),
    "beyond q": ([0, 2, 5], r"cu_seqlens_q must rise from 0 to at most 4, got 2, 5 at 1"),
    "largest": ([0, 2**31 - 1, 4], r"cu_seqlens_q must rise from 0 to at most 4, got 0, 2147483647 at 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_attention_refuses_wrong_values(backend, looks, name):
    change, message = WRONG[name]
    inputs = build(fit(BASE, backend))
    change(inputs)
    for op, args in ((swa_attn.prefill, inputs.prefill_args), (swa_attn.decode, inputs.decode_args)):
        with pytest.raises(IndexError, match=f"swa_attn.{op.__name__}: {message}"):
            op(*args, **inputs.options)


@pytest.mark.parametrize("name", WRONG_BOUNDS)
def test_prefill_refuses_wrong_bounds(backend, looks, name):
    values, message = WRONG_BOUNDS[name]
    inputs = build(fit(BASE, backend))
    set_values("cu_seqlens_q", values)(inputs)
    with pytest.raises(IndexError, match=f"swa_attn.prefill: {message}"):
        swa_attn.prefill(*inputs.prefill_args, **inputs.options)


@pytest.mark.parametrize("case", [replace(BASE, window=w, seqs=s) for w in (1, 5, None) for s in (((4, 21), (0, 9)),)])
def test_entries_that_nobody_sees_may_be_anything(backend, looks, case):
    inputs = build(fit(case, backend), tight=False)
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))


def test_padding_sequences_and_empty_batches_pass(backend, looks):
    inputs = build(fit(replace(BASE, seqs=((4, 0), (4, 2), (4, 20))), backend))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))
    none, table = torch.zeros(0, dtype=torch.int32), torch.zeros(0, 3, dtype=torch.int32)
    where = inputs.k_cache, inputs.v_cache, table, none
    start = torch.zeros(1, dtype=torch.int32)
    assert swa_attn.prefill(inputs.q[:0], *where, start)[0].shape[0] == 0


def new_tokens(*slots):
    pools = torch.full((3, 4, 2, 16), NAN), torch.full((3, 4, 2, 16), NAN)
    host = {"k_host_cache": torch.full((1, 4, 2, 16), NAN), "v_host_cache": torch.full((1, 4, 2, 16), NAN)}
    new = torch.zeros(len(slots), 2, 16)
    return (new, new, *pools, torch.tensor(slots)), host


@pytest.mark.parametrize("slot", [16, 2**31, 2**62, 2**63 - 1])
def test_append_refuses_a_slot_outside_the_pools(backend, looks, slot):
    args, host = new_tokens(15, slot)
    with pytest.raises(IndexError, match=rf"append_kv: slot_mapping\[1\] = {slot} is beyond the 16 slots of the pools"):
        swa_attn.append_kv(*args, **host)
    assert all(x.isnan().all() for x in (*args[2:4], *host.values()))


@pytest.mark.parametrize("src_page, dst_page, name", [(3, 0, "src"), (0, 3, "dst"), (2**40, 0, "src"), (3, -1, "src")])
def test_copy_refuses_a_page_outside_its_pool(backend, looks, src_page, dst_page, name):
    src, dst = torch.zeros(2, 3, 4, 2, 16), torch.full((2, 3, 4, 2, 16), NAN)
    with pytest.raises(IndexError, match=rf"copy_pages: {name}_pages\[1\] = \d+ is not a page of 0\.\.2"):
        swa_attn.copy_pages(src, dst, torch.tensor([0, src_page]), torch.tensor([0, dst_page]))
    assert dst.isnan().all()


def test_places_written_twice_are_found(backend):
    with swa_attn.check_values():
        args, host = new_tokens(3, -1, 7, -1, 3)
        with pytest.raises(
            IndexError, match=r"slot_mapping\[0\] and slot_mapping\[4\] are both 3: two tokens must not"
        ):
            swa_attn.append_kv(*args, **host)
        pool = torch.zeros(2, 5, 4, 2, 16)
        with pytest.raises(
            IndexError, match=r"dst_pages\[1\] and dst_pages\[2\] are both 4: a page must not be written"
        ):
            swa_attn.copy_pages(pool.clone(), pool, torch.tensor([-1, 1, 2]), torch.tensor([4, 4, 4]))
        with pytest.raises(IndexError, match=r"src_pages\[1\] = 3 is also one of dst_pages: within one pool"):
            swa_attn.copy_pages(pool, pool, torch.tensor([0, 3]), torch.tensor([3, 4]))
        swa_attn.copy_pages(pool, pool, torch.tensor([0, 1, -1]), torch.tensor([3, 4, 0]))


def test_the_switch(monkeypatch, capsys):
    from swa_attn import info

    for value, on in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv(_check_values.VARIABLE, value)
        assert _check_values.enabled() is on  # asked for each call, not at import
        with swa_attn.check_values(not on):
            assert _check_values.enabled() is not on
            with swa_attn.check_values(on):
                assert _check_values.enabled() is on
        assert info.collect()["check_values"] is on
        assert info.main([]) == 0
        assert "SWA_ATTN_CHECK_VALUES=1" in capsys.readouterr().out
    monkeypatch.delenv(_check_values.VARIABLE)
    assert not _check_values.enabled()
