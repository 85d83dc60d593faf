"""Real memory under the cache: how host pages lie, what moves when, what float8 below the device costs."""

import threading

import pytest
import torch

from swa_attn.kvcache import GroupSpec, KVCache, LowerTiers, Planner, SnapshotPolicy, Tier, thread_mover
from swa_attn.kvcache.storage import HostPages, host_page_bytes
from swa_attn.kvcache.store import SlabOptions, SlabStore

FULL = GroupSpec("full", (0, 3), 2, 24, 16)
SWA = GroupSpec("swa", (1, 2, 4), 4, 24, 16, 9)
GROUPS = (FULL, SWA)
PAGE_SIZE = 4
ENDS = SnapshotPolicy(slack_pages=0, fixed=())


class MostReuse(Planner):
    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_a_host_page_is_one_piece_k_of_all_layers_then_v(dtype):
    pages = HostPages(SWA, PAGE_SIZE, 5, dtype, pinned=False)
    k_elements, v_elements = 3 * PAGE_SIZE * 4 * 24, 3 * PAGE_SIZE * 4 * 16
    assert pages.k.shape == (3, 5, PAGE_SIZE, 4, 24) and pages.v.shape == (3, 5, PAGE_SIZE, 4, 16)
    assert pages.bytes_per_page == host_page_bytes(SWA, PAGE_SIZE, dtype)
    values = torch.arange(k_elements + v_elements).remainder(200).sub(100).to(dtype)
    pages.records.zero_()
    pages.k[:, 3] = values[:k_elements].view(3, PAGE_SIZE, 4, 24)
    pages.v[:, 3] = values[k_elements:].view(3, PAGE_SIZE, 4, 16)
    size = (k_elements + v_elements) * dtype.itemsize
    assert torch.equal(pages.records[3, :size], values.view(torch.uint8))
    assert not pages.records[[0, 1, 2, 4]].any() and not pages.records[3, size:].any()
    k, v = pages.layer(2)
    assert torch.equal(k[3].view(torch.uint8), pages.k[2, 3].view(torch.uint8)) and v.shape == (5, PAGE_SIZE, 4, 16)
    if dtype.itemsize == 1:
        pages.k_scale[2, 4] = 3.0
        pages.v_scale[0, 4] = 5.0
        scales = pages.records[4, -2 * 3 * 4 * 4 :].view(torch.float32)
        assert scales.tolist() == [0.0] * 8 + [3.0] * 4 + [5.0] * 4 + [0.0] * 8


def open_cache(store=None, dtype=torch.float32, lower_dtype=None, device=20, host=60, **options) -> KVCache:
    disk = {} if store is None else {"store": store, "disk_bytes": 4 << 20}
    lower = LowerTiers({"full": host, "swa": host}, dtype=lower_dtype, **disk)
    options = {"planner": MostReuse(rebuild=False, deadline=60.0), "policy": ENDS, **options}
    return KVCache(GROUPS, PAGE_SIZE, {"full": device, "swa": 12}, dtype, "cpu", "real", lower=lower, **options)


def contents(cache: KVCache, seed: int, positions: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """What a model would have put into each layer for the tokens that `seed` stands for."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for group in GROUPS:
        for layer in group.layers:
            k = torch.randn(positions, group.num_kv_heads, group.head_dim, generator=generator)
            v = torch.randn(positions, group.num_kv_heads, group.v_head_dim, generator=generator)
            found[layer] = k.to(cache.dtype), v.to(cache.dtype)
    return found


def run(cache: KVCache, seed: int, length: int = 41):
    """A request: checks nothing, writes what is not there; returns the sequence before it ends."""
    tokens = [seed * 1000 + i for i in range(length)]
    sequence = cache.begin(cache.key(tokens))
    while sequence.is_loading:
        cache.poll(timeout=10)
    start = sequence.num_computed
    assert cache.extend(sequence, length - start)
    for layer, (k, v) in contents(cache, seed, length).items():
        group = next(g for g in GROUPS if layer in g.layers)
        pages = cache.layers[layer]
        for position in range(start, length):
            page = sequence.block_tables[group.name][position // PAGE_SIZE]
            pages.k[page, position % PAGE_SIZE] = k[position]
            pages.v[page, position % PAGE_SIZE] = v[position]
    cache.commit(sequence, tokens[start:])
    while cache.num_pending:
        cache.poll(timeout=10)
    return sequence


def read(cache: KVCache, sequence, layer: int, first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    group = next(g for g in GROUPS if layer in g.layers)
    table, pages = sequence.block_tables[group.name], cache.layers[layer]
    where = [(table[p // PAGE_SIZE], p % PAGE_SIZE) for p in range(first, stop)]
    return tuple(torch.stack([x[page, offset] for page, offset in where]) for x in (pages.k, pages.v))


@pytest.fixture
def opened(tmp_path):
    def open_store(dtype=torch.float32, lower_dtype=None):
        layout, sizes = KVCache.store_layout(GROUPS, PAGE_SIZE, dtype, lower_dtype)
        options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
        return SlabStore(tmp_path, options, namespace=b"real", layout=layout)

    return open_store


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_what_comes_back_is_bit_for_bit_what_was_written(opened, tier):
    with opened() as store, open_cache(store, host=24 if tier is Tier.DISK else 100) as cache:
        for seed in range(6):
            cache.end(run(cache, seed))
        for pages in cache.memory.values():  # what is not copied back shows
            pages.k.fill_(float("nan"))
            pages.v.fill_(float("nan"))
        sequence = run(cache, 0)
        assert sequence.hit_tokens_by_tier == {tier: 40}
        for layer, (k, v) in contents(cache, 0, 41).items():
            first = 0 if layer in FULL.layers else 41 - 9
            got = read(cache, sequence, layer, first, 41)
            assert torch.equal(got[0], k[first:]) and torch.equal(got[1], v[first:])
        cache.end(sequence)


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_float8_below_the_device_halves_full_pages_and_leaves_windows_alone(opened, tier):
    lower = torch.float8_e4m3fn
    options = {"dtype": torch.bfloat16, "lower_dtype": lower, "host": 24 if tier is Tier.DISK else 100}
    with opened(torch.bfloat16, lower) as store, open_cache(store, **options) as cache:
        for seed in range(6):
            cache.end(run(cache, seed))
        sequence = run(cache, 0)
        assert sequence.hit_tokens_by_tier == {tier: 40}
        for layer, expected in contents(cache, 0, 41).items():
            windowed = layer in SWA.layers
            first = 41 - 9 if windowed else 0
            for got, wanted in zip(read(cache, sequence, layer, first, 40), expected, strict=True):
                wanted = wanted[first:40]
                if windowed:
                    assert torch.equal(got, wanted)
                    continue
                error = (got.float() - wanted.float()).abs()
                # Three bits of mantissa, then bfloat16's seven; near zero the smallest step of the page's scale.
                scale = wanted.float().abs().max() / 448
                bound = wanted.float().abs() * (2**-4 + 2**-8) + scale * 2**-9
                assert (error <= bound).all() and error.max() > 0
        cache.end(sequence)
        moved = cache.stats().moved_bytes
        assert not cache._host_pages_usable, "float8 pages are not what the kernels expect of the cache's own"
        scales = 2 * len(FULL.layers) * FULL.num_kv_heads * 4
        pages = moved[Tier.DEVICE, Tier.HOST, "full"] / (cache.pools["full"].bytes_per_page // 2 + scales)
        assert pages == round(pages) and pages >= 60


def test_a_model_starts_on_the_first_layer_while_the_others_are_still_coming(monkeypatch):
    """Layer by layer: asking for layer n waits for the copies of layers up to n only."""
    with open_cache() as cache:
        for seed in range(3):
            cache.end(run(cache, seed))
        gates = {layer: threading.Event() for layer in range(5)}
        copied: list[int] = []
        copy_pages = thread_mover.copy_pages

        def gated(source, target, *args, **scales):
            if target.data_ptr() in starts:
                layer = starts[target.data_ptr()]
                assert gates[layer].wait(10)
                copied.append(layer)
            copy_pages(source, target, *args, **scales)

        starts = {}
        for group in GROUPS:
            for i, layer in enumerate(group.layers):
                starts[cache.memory[group.name].k[i].data_ptr()] = layer
        monkeypatch.setattr(thread_mover, "copy_pages", gated)
        tokens = list(range(41))
        sequence = cache.begin(cache.key(tokens))
        assert sequence.hit_tokens_by_tier == {Tier.HOST: 40}
        for layer in range(5):
            gates[layer].set()
            cache.layers[layer]
            assert max(copied) <= layer and layer in copied
        monkeypatch.undo()
        cache.end(sequence)


def test_a_failed_copy_is_raised_and_not_served(monkeypatch):
    with open_cache() as cache:
        cache.end(run(cache, 0))

        def fail(*_, **__):
            raise ValueError("no such page")

        monkeypatch.setattr(thread_mover, "copy_pages", fail)
        tokens = [1000 + i for i in range(41)]
        sequence = cache.begin(cache.key(tokens))
        assert cache.extend(sequence, 41)
        cache.commit(sequence, tokens)
        with pytest.raises(RuntimeError, match="a transfer between tiers failed"):
            while cache.num_pending:
                cache.poll(timeout=10)


def test_lower_tiers_are_checked():
    with pytest.raises(ValueError, match="store and disk_bytes belong together"):
        LowerTiers({"full": 1, "swa": 1}, disk_bytes=5)
    with pytest.raises(ValueError, match=r"num_pages must name exactly the groups"):
        KVCache(GROUPS, 4, {"full": 4, "swa": 4}, torch.float32, "cpu", "", lower=LowerTiers({"full": 4}))
