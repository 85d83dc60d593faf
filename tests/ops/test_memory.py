"""What an op writes may share memory neither with itself nor with what it reads; what only looks like it may."""

import itertools
import random

import pytest
import torch

import swa_attn
from swa_attn import _memory
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build


def random_view(buffer, chance):
    dims = chance.randint(1, 4)
    sizes = [chance.randint(0 if chance.random() < 0.05 else 1, 4) for _ in range(dims)]
    strides = [chance.choice([0, 1, 1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 20]) for _ in range(dims)]
    typed = buffer.view(chance.choice([torch.float32, torch.float16]))
    return typed.as_strided(sizes, strides, chance.randint(0, 60))


def addresses(x):
    """The first byte of every element."""
    indices = itertools.product(*map(range, x.shape))
    steps = (sum(i * stride for i, stride in zip(index, x.stride(), strict=True)) for index in indices)
    return [(x.storage_offset() + step) * x.itemsize for step in steps]


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_are_those_found_byte_by_byte(seed):
    chance, buffer, found = random.Random(seed), torch.zeros(400), []
    for _ in range(400):
        x, y = random_view(buffer, chance), random_view(buffer, chance)
        of_x, of_y = addresses(x), addresses(y)
        assert _memory.overlaps_itself(x) == (len(set(of_x)) < len(of_x)), (x.shape, x.stride())
        bytes_of_x = {start + i for start in of_x for i in range(x.itemsize)}
        shared = any(start + i in bytes_of_x for start in of_y for i in range(y.itemsize))
        assert _memory.overlap(x, y) == _memory.overlap(y, x) == shared
        found.append(shared)
    assert 50 < sum(found) < 350


def test_layouts_of_pools_are_decided_at_once():
    """A search that walked over pages would take for ever, or give up and refuse."""
    packed = torch.empty(0).as_strided((0,), (1,))
    packed = torch.empty(1).expand(1 << 20, 64, 8, 320)
    strides = (64 * 8 * 320, 8 * 320, 320, 1)
    for heads_first in (False, True):
        order = (strides[0], 320, 64 * 320, 1) if heads_first else strides
        layout = (1 << 20, 64, 8, 192), order, 2, (1 << 20, 64, 8, 128), order, 2
        assert not _memory._meet(*layout, 192 * 2)
        assert _memory._meet(*layout, 191 * 2)
        assert not _memory._repeats((1 << 20, 64, 8, 192), order)
    assert _memory.overlaps_itself(packed)
    assert _memory._meet((100,) * 5, (89, 83, 79, 73, 71), 2, (100,) * 5, (61, 59, 53, 47, 43), 2, 1)  # gives up


WHERE = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([7], dtype=torch.int32)
STARTS = torch.tensor([0, 4], dtype=torch.int32)


def attend(out, lse, q=None, cache=None, op=swa_attn.prefill):
    q = torch.randn(4, 2, 8) if q is None else q
    cache = torch.randn(4, 4, 2, 8) if cache is None else cache
    if op is swa_attn.decode:
        return op(q[None], cache, cache, *WHERE, out=out[None], lse=lse[None])
    return op(q, cache, cache, *WHERE, STARTS, out=out, lse=lse)


def q_and_part(start):
    q = torch.randn(4, 2, 8)
    return {"q": q, "lse": q.view(-1)[start : start + 8].view(4, 2), "out": torch.empty(4, 2, 8)}


def cache_and_part():
    cache = torch.randn(4, 4, 2, 8)
    return {"cache": cache, "out": cache.view(-1)[: 4 * 2 * 8].view(4, 2, 8), "lse": torch.empty(4, 2)}


def outputs_in_one():
    both = torch.empty(72)
    return {"out": both[:64].view(4, 2, 8), "lse": both[60:68].view(4, 2)}


OVERLAPPING = {
    "out of stride 0": (lambda: {"out": torch.empty(1, 2, 8).expand(4, 2, 8), "lse": torch.empty(4, 2)}, "out"),
    "out of overlapping strides": (
        lambda: {"out": torch.zeros(200).as_strided((4, 2, 8), (8, 8, 1)), "lse": torch.empty(4, 2)},
        "out",
    ),
    "lse inside q": (lambda: q_and_part(56), "lse"),
    "out inside the cache": (cache_and_part, "out"),
    "lse inside out": (outputs_in_one, "out"),
}


@pytest.mark.parametrize("op", [swa_attn.prefill, swa_attn.decode])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_attention_outputs_that_overlap_are_refused(name, op):
    arguments, blamed = OVERLAPPING[name]
    with pytest.raises(ValueError, match=rf"swa_attn.{op.__name__}: {blamed} must be .*since it is written"):
        attend(**arguments(), op=op)


def test_an_output_next_to_the_queries_is_no_overlap(backend):
    """out and q as the two halves of one buffer, rows in turn: nothing is shared."""
    inputs = build(AttentionCase(head_dim=64, v_head_dim=64, dtype=torch.float16))
    both = torch.zeros(5, 4, 2, 64, dtype=torch.float16)
    both[:, :, 0] = inputs.q
    inputs.q = both[:, :, 0]
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options, out=both[:, :, 1], lse=torch.empty(5, 4))
    assert_close_to_oracle(inputs, out, lse)


def appended(k_cache, v_cache, key=None, **host):
    key = torch.ones(1, 2, 8) if key is None else key
    swa_attn.append_kv(key, torch.ones(1, 2, 8), k_cache, v_cache, torch.tensor([9]), **host)


def test_caches_that_overlap_are_refused():
    cache, one = torch.zeros(3, 4, 2, 8), torch.zeros(1, 4, 2, 8)
    with pytest.raises(ValueError, match="append_kv: k_cache must be without elements that share memory"):
        appended(one.expand(3, 4, 2, 8), cache)
    with pytest.raises(ValueError, match="append_kv: v_cache must be without elements that share memory"):
        appended(cache, one.expand(3, 4, 2, 8))
    with pytest.raises(ValueError, match="append_kv: k_cache must be apart in memory from v_cache"):
        appended(cache, cache)
    with pytest.raises(ValueError, match="append_kv: k_cache must be apart in memory from key"):
        appended(cache, torch.zeros(3, 4, 2, 8), key=cache[2, :1])
    with pytest.raises(ValueError, match="append_kv: v_cache must be apart in memory from v_host_cache"):
        appended(cache, both := torch.zeros(3, 4, 2, 8), k_host_cache=torch.zeros(1, 4, 2, 8), v_host_cache=both[:1])
    assert (cache == 0).all() and (one == 0).all()


def test_a_layer_of_a_pool_beside_the_others(backend):
    """K and V of all layers in one tensor, page-major, and new keys from the memory behind it."""
    pool = torch.zeros(6 * 2 * 2 * 4 * 2 * 8 + 32)
    pages = pool[: 6 * 2 * 2 * 4 * 2 * 8].view(6, 2, 2, 4, 2, 8)  # page, layer, K or V, slot, head, dim
    key = pool[-32:].view(2, 2, 8)
    key.copy_(torch.arange(32.0).view(2, 2, 8))
    swa_attn.append_kv(key, key, pages[:, 1, 0], pages[:, 1, 1], torch.tensor([23, 5]))
    assert torch.equal(pages[5, 1, 0, 3], key[0]) and torch.equal(pages[1, 1, 1, 1], key[1])
    assert pages.count_nonzero() == 2 * 32 - 2


def test_pages_move_within_one_pool_and_between_its_layers(backend):
    pool = torch.randn(3, 5, 4, 2, 16)
    for src, dst in ((pool, pool), (pool[:1], pool[2:]), (pool[:, 1:], pool[:, :4])):
        before, expected = src.clone(), dst.clone()
        expected[:, 3] = before[:, 0]
        swa_attn.copy_pages(src, dst, torch.tensor([0]), torch.tensor([3]))
        assert torch.equal(dst[:, 3], expected[:, 3])


def test_copies_that_overlap_are_refused():
    pool, pages = torch.zeros(2, 5, 4, 2, 16), (torch.tensor([1]), torch.tensor([2]))
    with pytest.raises(ValueError, match="copy_pages: dst must be without elements that share memory"):
        swa_attn.copy_pages(pool, pool[:1].expand(2, -1, -1, -1, -1), *pages)
    with pytest.raises(ValueError, match="copy_pages: dst must be apart in memory from src"):
        moved = pool.view(-1)[16:].as_strided((2, 4, 4, 2, 16), pool.stride())  # half a slot further
        swa_attn.copy_pages(pool[:, :4], moved, *pages)
    one, layers = torch.zeros(64), torch.zeros(3, 5, 4, 2, 16)
    shifted = [
        (layers[:-1], layers[1:]),  # layers that are read and written
        (pool[:, :, :3], pool[:, :, 1:]),  # slots that are
        [one[i:].as_strided((1, 1, 4, 1, 8), (1, 1, 8, 8, 1)) for i in (0, 8)],  # one page each: strides say nothing
    ]
    for src, dst in shifted:
        with pytest.raises(ValueError, match="copy_pages: dst must be apart in memory from src, "):
            swa_attn.copy_pages(src, dst, torch.tensor([0]), torch.tensor([0]))
    with swa_attn.check_values(True), pytest.raises(IndexError, match="a page must not be read and written"):
        swa_attn.copy_pages(pool[:, :4], pool[:, 1:], torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="copy_pages: dst must be apart in memory from src_pages"):
        swa_attn.copy_pages(pool.clone(), pool, pool.view(-1)[:2].view(torch.int64), pages[1])
    fp8 = torch.zeros(2, 5, 4, 2, 16, dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="copy_pages: dst_scale must be without elements"):
        swa_attn.copy_pages(pool, fp8, *pages, dst_scale=torch.zeros(2, 1, 2).expand(2, 5, 2))


def test_functional_calls_read_what_they_like(backend):
    """Nothing is written but new memory: K may be V, and queries may be expanded."""
    inputs = build(AttentionCase(head_dim=64, v_head_dim=64, dtype=torch.float16, seqs=((1, 9), (1, 9))))
    inputs.v_cache = inputs.k_cache
    inputs.q = inputs.q[:1].expand(2, -1, -1)
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))
