"""`SlidingWindowAttention`: append and attend in one call, against dense float64 attention without any pages."""

import pytest
import torch

import swa_attn
from swa_attn import native
from swa_attn.attention import AttentionMetadata, SlidingWindowAttention
from swa_attn.reference import to_cache_dtype
from swa_attn.testing.bounds import attention_bounds
from swa_attn.testing.roundings import roundings_of

HQ, HKV, DK, DV, PAGE = 6, 2, 24, 16, 4
NAN = float("nan")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    if request.param == "cpu" and native.unavailable():
        pytest.skip(f"backend cpu: {native.unavailable()}")
    with swa_attn.use_backend(request.param):
        yield request.param


def dense(q, k, v, window, scale, softcap, sinks):
    """Attention of all n tokens of one sequence in q's dtype: q `[n, Hq, Dk]`, k, v `[n, Hkv, Dk | Dv]`."""
    group, n = q.shape[1] // k.shape[1], q.shape[0]
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(q.dtype)[:, None, None].expand(-1, n, 1)], dim=-1)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., :n], v.repeat_interleave(group, 1))


class Stream:
    """Random tokens of one sequence, fed to a module step by step; its pages come in descending order."""

    def __init__(self, module, length, first_page, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        sizes = (module.num_q_heads, DK), (module.num_kv_heads, DK), (module.num_kv_heads, DV)
        self.q, self.k, self.v = (torch.randn(length, *s, generator=generator).to(dtype) for s in sizes)
        self.table = [first_page - i for i in range(-(-length // PAGE))]
        self.module, self.done, self.out = module, 0, []


def pools(pages=24, heads=HKV, dtype=torch.float32):
    return tuple(torch.full((pages, PAGE, heads, d), NAN, dtype=torch.float32).to(dtype) for d in (DK, DV))


def advance(module, caches, *counts, **more):
    """One step over (stream, number of its next tokens); poisons and frees the pages that windows have left."""
    for stream, count in counts:
        stream.done += count
    metadata = AttentionMetadata.build(
        [s.table for s, _ in counts], [s.done for s, _ in counts], [c for _, c in counts], PAGE, window=module.window
    )
    q, k, v = (torch.cat([getattr(s, x)[s.done - c : s.done] for s, c in counts]) for x in "qkv")
    out = module(q, k, v, *caches, metadata, **more)
    for (stream, _), part in zip(counts, out.split([c for _, c in counts]), strict=True):
        stream.out.append(part)
        gone = 0 if module.window is None else max(0, stream.done - module.window + 1) // PAGE
        for i in range(gone):
            if stream.table[i] >= 0:
                for cache in caches:
                    cache[stream.table[i]] = NAN
                stream.table[i] = -1
    return metadata


def assert_right(stream, backend, scales=(None, None)):
    """With scales, `[1, Hkv]` each, what was appended is K and V as float8."""
    m, n = stream.module, stream.done
    k, v = stream.k, stream.v
    if scales[0] is not None:
        k, v = (to_cache_dtype(x, torch.float8_e4m3fn, s[0, :, None]) for x, s in zip((k, v), scales))
    place = torch.tensor([[0]]), torch.tensor([n]), torch.tensor([0, n])  # all keys are one page
    options = {"window": m.window, "softmax_scale": m.softmax_scale, "softcap": m.softcap, "sinks": m.sinks}
    bounds = attention_bounds(
        stream.q,
        k[None],
        v[None],
        *place,
        **options,
        k_scale=scales[0],
        v_scale=scales[1],
        roundings=roundings_of(backend, stream.q.dtype, k.dtype),
    )
    k, v = (x.double() if s is None else x.double() * s[0, :, None] for x, s in zip((k, v), scales))
    exact = dense(stream.q.double(), k, v, m.window, m.softmax_scale, m.softcap, m.sinks)
    assert ((torch.cat(stream.out).double() - exact).abs() <= bounds.out).all()


CASES = {
    "full": {},
    "window": {"window": 6},
    "window of one": {"window": 1},
    "sinks": {"window": 6, "sinks": True},
    "softcap and scale": {"window": 9, "softcap": 3.0, "softmax_scale": 0.5},
}


def make(**options):
    module = SlidingWindowAttention(HQ, HKV, DK, DV, **options)
    if module.sinks is not None:
        module.sinks.copy_(torch.linspace(-2, 2, HQ))
    return module


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_and_then_decode_steps(backend, case):
    module, caches = make(**CASES[case]), pools()
    a, b = Stream(module, 30, 23, seed=1), Stream(module, 26, 10, seed=2)
    assert advance(module, caches, (a, 17), (b, 13)).q_len is None
    for count in (1, 1, 3, 8):  # decode, decode, and two speculative lengths
        assert advance(module, caches, (a, count), (b, count)).q_len == count
    assert_right(a, backend)
    assert_right(b, backend)


def test_prompts_and_decodes_mixed_in_one_step(backend):
    module, caches = make(window=6, sinks=True), pools()
    a, b, c = Stream(module, 20, 23, seed=1), Stream(module, 21, 15, seed=2), Stream(module, 9, 5, seed=3)
    advance(module, caches, (a, 11), (b, 1), (c, 0))
    advance(module, caches, (a, 1), (b, 19), (c, 9))
    advance(module, caches, (a, 8), (b, 1), (c, 0))
    for stream in (a, b, c):
        assert_right(stream, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions(backend, dtype):
    module, caches = make(window=6, sinks=True), pools(dtype=dtype)
    a = Stream(module, 20, 23, dtype)
    advance(module, caches, (a, 12))
    advance(module, caches, (a, 8))
    assert torch.cat(a.out).dtype == dtype
    assert_right(a, backend)


def test_host_pages_and_float8_pages_reach_the_ops(backend):
    module = make(window=6)
    on_device, split = pools(), [x.chunk(2) for x in pools()]
    a, b = Stream(module, 20, 13), Stream(module, 20, 13)  # pages 13..9: 12 and up lie on the host
    for count in (11, 1, 8):
        advance(module, on_device, (a, count))
        device_pages, host_pages = zip(*split, strict=True)
        host = {"k_host_cache": host_pages[0], "v_host_cache": host_pages[1]}
        b.done += count
        metadata = AttentionMetadata.build([b.table], [b.done], [count], PAGE)
        rows = slice(b.done - count, b.done)
        b.out.append(module(b.q[rows], b.k[rows], b.v[rows], *device_pages, metadata, **host))
    assert torch.equal(torch.cat(a.out), torch.cat(b.out))

    caches = pools(dtype=torch.float8_e4m3fn)
    scales = {"k_scale": torch.full((24, HKV), 1 / 64), "v_scale": torch.full((24, HKV), 1 / 32)}
    c = Stream(module, 20, 13)
    metadata = AttentionMetadata.build([c.table], [20], [20], PAGE)
    c.done, c.out = 20, [module(c.q, c.k, c.v, *caches, metadata, **scales)]
    assert_right(c, backend, (scales["k_scale"][:1], scales["v_scale"][:1]))


def test_padding_sequences_give_empty_rows_and_touch_nothing(backend):
    module, caches = make(window=6, sinks=True), pools()
    metadata = AttentionMetadata.build([[], []], [0, 0], [1, 1], PAGE)
    x = torch.randn(2, HQ, DK)
    out = module(x, x[:, :HKV], torch.randn(2, HKV, DV), *caches, metadata)
    assert torch.equal(out, torch.zeros(2, HQ, DV))
    assert all(cache.isnan().all() for cache in caches)


def test_the_sink_parameter_loads_and_needs_no_grad():
    module = SlidingWindowAttention(HQ, HKV, DK, sinks=True, dtype=torch.bfloat16)
    assert not module.sinks.requires_grad and torch.equal(module.sinks, torch.zeros(HQ, dtype=torch.bfloat16))
    module.load_state_dict({"sinks": torch.arange(HQ)})
    assert module.sinks.tolist() == list(range(HQ))
    assert SlidingWindowAttention(HQ, HKV, DK).state_dict() == {}
    with pytest.raises(RuntimeError, match="sinks"):
        SlidingWindowAttention(HQ, HKV, DK).load_state_dict({"sinks": torch.zeros(HQ)})


def test_repr_says_what_it_is():
    module = SlidingWindowAttention(64, 8, 192, 128, window=128, sinks=True, softcap=30.0)
    assert repr(module) == (
        "SlidingWindowAttention(64/8 heads of 192/128, window=128, softmax_scale=0.07217, softcap=30, sinks=True)"
    )


def test_it_compiles_without_a_graph_break():
    module, caches = make(window=6, sinks=True), pools()
    eager = pools()
    stream = Stream(module, 10, 23)
    metadata = AttentionMetadata.build([stream.table], [10], [10], PAGE)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        got = compiled(stream.q, stream.k, stream.v, *caches, metadata)
        assert torch.equal(got, module(stream.q, stream.k, stream.v, *eager, metadata))
    assert torch.equal(caches[0].nan_to_num(), eager[0].nan_to_num()), "the compiled graph writes the cache too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 2, 8), "num_q_heads must be a multiple of num_kv_heads = 2, got 5"),
        ((4, 0, 8), "num_kv_heads must be at least 1, got 0"),
        ((4, 2, 0), "head_dim must be at least 1, got 0"),
        ((4, 2, 8, 0), "v_head_dim must be at least 1, got 0"),
        ((4, 2, 8, 8, {"window": 0}), "window must be at least 1 .* or None, got 0"),
        ((4, 2, 8, 8, {"softcap": -1.0}), r"softcap must be 0 \(off\) or positive, got -1.0"),
    ],
    ids=str,
)
def test_construction_errors(arguments, message):
    options = arguments[-1] if isinstance(arguments[-1], dict) else {}
    with pytest.raises(ValueError, match=message):
        SlidingWindowAttention(*(a for a in arguments if a is not options), **options)


@pytest.mark.parametrize(
    ("name", "shape"), [("q", (3, HQ, DK)), ("q", (4, HQ, DV)), ("k", (4, HQ, DK)), ("v", (4, HKV, DK))], ids=str
)
def test_a_wrong_shape_is_named(name, shape):
    module, caches = make(), pools()
    tensors = {"q": torch.zeros(4, HQ, DK), "k": torch.zeros(4, HKV, DK), "v": torch.zeros(4, HKV, DV)}
    metadata = AttentionMetadata.build([[0]], [4], [4], PAGE)
    with pytest.raises(ValueError, match=rf"{name} must be of shape .*, got \[{shape[0]}, {shape[1]}, {shape[2]}\]"):
        module(**{**tensors, name: torch.zeros(shape)}, k_cache=caches[0], v_cache=caches[1], metadata=metadata)


def test_gradients_are_refused():
    module, caches = make(), pools()
    metadata = AttentionMetadata.build([[0]], [4], [4], PAGE)
    q = torch.zeros(4, HQ, DK, requires_grad=True)
    with pytest.raises(NotImplementedError, match="q requires grad"):
        module(q, torch.zeros(4, HKV, DK), torch.zeros(4, HKV, DV), *caches, metadata)
