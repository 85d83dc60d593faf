"""What only a card can show: graphs, streams, host memory read in place, no waiting. `tests/ops` covers the results."""

from dataclasses import dataclass

import pytest
import torch

import swa_attn
from swa_attn import reference
from swa_attn.testing.bounds import attention_bounds
from swa_attn.testing.compare import assert_within
from swa_attn.testing.roundings import roundings_of

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
DIMS = [(64, 64), (128, 128), (192, 128), (256, 256)]


@dataclass
class Batch:
    """Random pages for sequences of up to `max_len` tokens, all table entries valid."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seqlens_k: torch.Tensor

    @property
    def args(self):
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seqlens_k


def batch(lengths, q_len=1, dims=(192, 128), heads=(16, 2), page_size=16, dtype=BF16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    pages = -(-1024 // page_size)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    table = torch.randperm(len(lengths) * pages, generator=generator, device="cuda").int().view(len(lengths), pages)
    shape = (table.numel(), page_size, heads[1])
    pools = randn(*shape, dims[0]), randn(*shape, dims[1])
    return Batch(randn(len(lengths), q_len, heads[0], dims[0]), *pools, table, seqlens(lengths))


def seqlens(lengths):
    return torch.tensor(lengths, dtype=torch.int32, device="cuda")


def cu(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")


def assert_right(backend, got, b, window, sinks=None, cu_seqlens_q=None):
    """decode, or prefill if there are prefix sums of new tokens, against the reference in float64 on the card."""
    options = dict(softmax_scale=b.q.shape[-1] ** -0.5, window=-1 if window is None else window, sinks=sinks)

    q, *where = b.args
    if cu_seqlens_q is None:
        cu_seqlens_q = torch.arange(len(q) + 1, dtype=torch.int32, device="cuda") * q.shape[1]
        q, got = q.flatten(0, 1), [x.flatten(0, 1) for x in got]
    exact = reference.prefill(q, *where, cu_seqlens_q, **options, compute_dtype=torch.float64)
    bounds = attention_bounds(
        q, *where, cu_seqlens_q, **options, roundings=roundings_of(backend, q.dtype, b.k_cache.dtype)
    )
    assert_within(bounds, exact, got, f"a batch on {backend}")


@pytest.mark.parametrize("window", [1, 128, 700, None])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_decode_on_the_card(card_backend, dims, window):
    b, sinks = batch([1, 16, 17, 128, 129, 1000], q_len=1, dims=dims), torch.randn(16, device="cuda")
    with swa_attn.use_backend(card_backend):
        got = swa_attn.decode(*b.args, window=window, sinks=sinks)
    assert_right(card_backend, got, b, window, sinks)


@pytest.mark.parametrize("window", [128, None])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_prefill_on_the_card(card_backend, dims, window):
    new = [70, 1, 33, 16]
    b = batch([70, 300, 500, 129], dims=dims)
    b.q = torch.randn(sum(new), 16, dims[0], device="cuda").to(BF16)
    with swa_attn.use_backend(card_backend):
        got = swa_attn.prefill(*b.args, cu(new), window=window)
    assert_right(card_backend, got, b, window, cu_seqlens_q=cu(new))


LENGTHS = ([40, 300, 1, 0], [1024, 5, 129, 700], [0, 0, 0, 1])  # captured with the first


@pytest.mark.parametrize("q_len, window", [(1, 128), (1, None), (4, 128), (4, None)])
def test_decode_graph_replays_with_other_lengths_and_pages(card_backend, q_len, window):
    b = batch(LENGTHS[0], q_len)
    out, lse = torch.empty(4, q_len, 16, 128, dtype=BF16, device="cuda"), torch.empty(4, q_len, 16, device="cuda")
    with swa_attn.use_backend(card_backend):

        def run():
            swa_attn.decode(*b.args, window=window, out=out, lse=lse)

        graph = captured(run)
        for seed, lengths in enumerate(LENGTHS):
            b.seqlens_k.copy_(seqlens(lengths))
            fresh = batch(lengths, q_len, seed=seed)
            b.q.copy_(fresh.q)
            b.block_table.copy_(fresh.block_table)
            out.fill_(float("nan"))
            lse.fill_(float("nan"))
            graph.replay()
            replayed = out.clone(), lse.clone()
            run()
            assert torch.equal(replayed[0], out) and torch.equal(replayed[1], lse)
            assert_right(card_backend, replayed, b, window)


@pytest.mark.parametrize("window", [128, None])
def test_prefill_graph_replays_with_other_lengths(card_backend, window):
    """The same number of rows in all, cut differently."""
    cuts = ([[64, 40, 1], [64, 300, 200]], [[1, 100, 4], [1000, 100, 30]], [[105, 0, 0], [105, 7, 0]])
    b = batch(cuts[0][1])
    b.q = torch.randn(105, 16, 192, device="cuda").to(BF16)
    cu_seqlens_q = cu(cuts[0][0])
    out, lse = torch.empty(105, 16, 128, dtype=BF16, device="cuda"), torch.empty(105, 16, device="cuda")
    with swa_attn.use_backend(card_backend):

        def run():
            swa_attn.prefill(*b.args, cu_seqlens_q, window=window, out=out, lse=lse)

        graph = captured(run)
        for new, lengths in cuts:
            b.seqlens_k.copy_(seqlens(lengths))
            cu_seqlens_q.copy_(cu(new))
            out.fill_(float("nan"))
            graph.replay()
            replayed = out.clone(), lse.clone()
            run()
            assert torch.equal(replayed[0], out) and torch.equal(replayed[1], lse)
            assert_right(card_backend, replayed, b, window, cu_seqlens_q=cu_seqlens_q)


def captured(run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_append_and_copy_in_a_graph(card_backend):
    generator = torch.Generator("cuda").manual_seed(0)
    key, value = (torch.randn(6, 2, 128, generator=generator, device="cuda").to(BF16) for _ in "kv")
    pools = [torch.zeros(4, 16, 2, 128, dtype=BF16, device="cuda") for _ in "kv"]
    target = torch.zeros(1, 4, 16, 2, 128, dtype=BF16, device="cuda")
    slots = torch.tensor([0, 5, -1, 40, 63, 17], device="cuda")
    source_pages, target_pages = torch.tensor([0, 2], device="cuda"), torch.tensor([3, 1], device="cuda")
    with swa_attn.use_backend(card_backend):

        def run():
            swa_attn.append_kv(key, value, *pools, slots)
            swa_attn.copy_pages(pools[0][None], target, source_pages, target_pages)

        graph = captured(run)
        slots.copy_(torch.tensor([1, -1, 2, 33, 62, 18]))
        target_pages.copy_(torch.tensor([2, -1]))
        for pool in (*pools, target):
            pool.zero_()
        graph.replay()
    expected = [torch.zeros(4, 16, 2, 128, dtype=BF16) for _ in "kv"]
    reference.append_kv(key.cpu(), value.cpu(), *expected, slots.cpu())
    assert torch.equal(pools[0].cpu(), expected[0]) and torch.equal(pools[1].cpu(), expected[1])
    assert torch.equal(target[0, 2].cpu(), expected[0][0]) and target[0, [0, 1, 3]].eq(0).all()


@pytest.mark.parametrize("window", [128, None])
def test_host_pages_are_read_in_place_with_the_same_bits(card_backend, window):
    b = batch([1000, 129, 700])
    half = b.k_cache.shape[0] // 2
    hosts = {f"{n}_host_cache": pool[half:].cpu().pin_memory() for n, pool in zip("kv", (b.k_cache, b.v_cache))}
    with swa_attn.use_backend(card_backend):
        expected = swa_attn.decode(*b.args, window=window)
        b.k_cache, b.v_cache = b.k_cache[:half].clone(), b.v_cache[:half].clone()
        got = swa_attn.decode(*b.args, window=window, **hosts)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_append_writes_host_pages(card_backend):
    key = torch.randn(3, 2, 128, device="cuda").to(BF16)
    pools = [torch.zeros(2, 16, 2, 128, dtype=BF16, device="cuda") for _ in "kv"]
    hosts = {f"{n}_host_cache": torch.zeros(2, 16, 2, 128, dtype=BF16).pin_memory() for n in "kv"}
    slots = torch.tensor([2 * 16 + 3, 5, 3 * 16 + 15], device="cuda")
    with swa_attn.use_backend(card_backend):
        swa_attn.append_kv(key, key, *pools, slots, **hosts)
    torch.cuda.synchronize()
    assert torch.equal(hosts["k_host_cache"][0, 3], key[0].cpu())
    assert torch.equal(hosts["v_host_cache"][1, 15], key[2].cpu())
    assert torch.equal(pools[0][0, 5], key[1])


@pytest.mark.parametrize("direction", ["down", "up"])
def test_copy_pages_between_the_tiers(card_backend, direction):
    """Layer-major on the device, page-major on the host; then through float8 and back."""
    layers, pages = 3, 5
    device = torch.randn(layers, pages, 16, 2, 128, device="cuda").to(BF16)
    host = torch.randn(pages, layers, 16, 2, 128).to(BF16).pin_memory().transpose(0, 1)
    source, target = (device, host) if direction == "down" else (host, device)
    expected = target.cpu().clone()
    where = torch.tensor([4, 0, 2]), torch.tensor([1, -1, 3])
    reference.copy_pages(source.cpu(), expected, *where)
    with swa_attn.use_backend(card_backend):
        swa_attn.copy_pages(source, target, *(x.cuda() for x in where))
    torch.cuda.synchronize()
    assert torch.equal(target.cpu(), expected)


def test_nothing_waits_for_the_card(card_backend):
    b = batch([300, 40])
    slots = torch.tensor([3, 9], device="cuda")
    key, value = b.q[:, 0, :2], b.q[:, 0, :2, :128].contiguous()
    new = cu([1, 1])

    def run():
        swa_attn.append_kv(key, value, b.k_cache, b.v_cache, slots)
        for window in (128, None):
            swa_attn.decode(*b.args, window=window)
            swa_attn.prefill(b.q[:, 0], *b.args[1:], new, window=window)

    with swa_attn.use_backend(card_backend):
        run()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_work_goes_to_the_current_stream(card_backend):
    """Behind a long kernel on the same stream, the result must be that of the inputs written after it."""
    b = batch([300])
    big = torch.randn(6000, 6000, device="cuda")
    with swa_attn.use_backend(card_backend):
        expected = swa_attn.decode(*b.args, window=128)[0]
        q = b.q.clone()
        b.q.fill_(float("nan"))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            big @ big
            b.q.copy_(q)
            got = swa_attn.decode(*b.args, window=128)[0]
        stream.synchronize()
    assert torch.equal(got, expected)


def test_pools_beyond_two_to_the_31_elements_on_the_card(card_backend):
    b = batch([300, 129], dims=(128, 128))
    count = b.k_cache.shape[0]
    num_pages = 2**31 // (16 * 2 * 128) + count
    torch.utils.deterministic.fill_uninitialized_memory = False  # 8 GiB
    for name in ("k_cache", "v_cache"):
        pool = torch.empty(num_pages, 16, 2, 128, dtype=BF16, device="cuda")
        pool[-count:] = getattr(b, name)
        setattr(b, name, pool)
    b.block_table += num_pages - count
    with swa_attn.use_backend(card_backend):
        got = swa_attn.decode(*b.args, window=128)
    assert_right(card_backend, got, b, 128)
