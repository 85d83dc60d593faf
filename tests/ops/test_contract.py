"""The ops as PyTorch sees them: schemas, fakes, mutation, compile, gradients, and errors that name the argument."""

from dataclasses import replace

import pytest
import torch
from fitting import fit
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

import swa_attn
from swa_attn import _checks, ops
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build

FP8 = torch.float8_e4m3fn
OPS = torch.ops.swa_attn
NAMES = {"append_kv", "prefill", "prefill.out", "decode", "decode.out", "merge_states", "copy_pages"}
CASES = [
    AttentionCase(seqs=((2, 9), (2, 14)), sinks=True),
    AttentionCase(seqs=((2, 9), (2, 14)), layout="packed", host=0.5, softcap=3.0),
]
# opcheck's schema test and its comparison of results compute with the inputs, which torch cannot do in float8.
FP8_CHECKS = ("test_autograd_registration", "test_faketensor")


def attention_arguments(case, op):
    """Positional and keyword arguments of torch.ops for a case whose sequences have equal numbers of new tokens."""
    inputs = build(case)
    options = {**inputs.options, "window": case.window or -1}
    args = inputs.decode_args if op.startswith("decode") else inputs.prefill_args
    if op.endswith(".out"):
        out = torch.empty(*args[0].shape[:-1], case.v_head_dim, dtype=case.dtype)
        options |= {"out": out, "lse": torch.empty(args[0].shape[:-1])}
    return args, options


def page_arguments(op):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    if op == "append_kv":
        packed = torch.zeros(3, 4, 2, 24)
        args = randn(3, 2, 16), randn(3, 2, 8), packed[..., :16], packed[..., 16:], torch.tensor([11, -1, 0])
        return args, {"k_host_cache": torch.zeros(2, 4, 2, 16), "v_host_cache": torch.zeros(2, 4, 2, 8)}
    if op == "merge_states":
        return (randn(5, 2, 16), randn(5, 2), randn(5, 2, 16), randn(5, 2)), {"sinks": randn(2)}
    return (randn(2, 3, 4, 2, 16), torch.zeros(2, 4, 4, 2, 16), torch.tensor([1, 2]), torch.tensor([0, 3])), {}


def overload(name):
    packet, _, kind = name.partition(".")
    return getattr(getattr(OPS, packet), kind or "default")


def test_every_op_is_defined():
    assert {schema.partition("(")[0] for schema in ops.SCHEMAS} == NAMES


@pytest.mark.parametrize("name", sorted(n for n in NAMES if n.startswith(("prefill", "decode"))))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_attention(backend, name, case):
    args, options = attention_arguments(fit(case, backend), name)
    torch_library.opcheck(overload(name), args, options)


@pytest.mark.parametrize("name", ["append_kv", "merge_states", "copy_pages"])
def test_opcheck_pages(backend, name):
    args, options = page_arguments(name)
    torch_library.opcheck(overload(name), args, options)


def test_opcheck_fp8(backend):
    for name in ("prefill", "decode.out"):
        args, options = attention_arguments(fit(replace(CASES[1], cache_dtype=FP8), backend), name)
        torch_library.opcheck(overload(name), args, options, test_utils=FP8_CHECKS)
    (src, _, *pages), _ = page_arguments("copy_pages")
    down, scale = torch.zeros(2, 4, 4, 2, 16, dtype=FP8), torch.zeros(2, 4, 2)
    torch_library.opcheck(OPS.copy_pages.default, (src, down, *pages), {"dst_scale": scale}, test_utils=FP8_CHECKS)


def test_fullgraph_compile_of_a_layer(backend):
    """append, attention and merge in one graph, the in-place update included; new lengths do not recompile."""
    case = fit(AttentionCase(seqs=((3, 9), (3, 14))), backend)
    inputs = build(case)
    key, value = (torch.randn(6, 2, dim).to(case.dtype) for dim in (case.head_dim, case.v_head_dim))
    slots = torch.full((6,), -1)
    page, slot = divmod(13, case.page_size)  # of the last key
    slots[5] = int(inputs.block_table[1, page]) * case.page_size + slot

    def layer(k_cache, v_cache, q, seqlens):
        swa_attn.append_kv(key, value, k_cache, v_cache, slots)
        where = k_cache, v_cache, inputs.block_table, seqlens, inputs.cu_seqlens_q
        out, lse = swa_attn.prefill(q, *where, **inputs.options)
        return swa_attn.merge_states(out, lse, out * 2, lse - 1)[0] + 1

    pools = [(inputs.k_cache.clone(), inputs.v_cache.clone()) for _ in range(2)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for seqlens, may_compile in (([9, 14], True), ([8, 14], False)):
            seqlens = torch.tensor(seqlens, dtype=torch.int32)
            with torch._dynamo.config.patch(error_on_recompile=not may_compile):
                got = compiled(*pools[0], inputs.q, seqlens)
            assert torch.equal(got, layer(*pools[1], inputs.q, seqlens))
    assert torch.equal(pools[0][0].nan_to_num(), pools[1][0].nan_to_num())
    assert torch.equal(pools[0][0].flatten(0, 1)[slots[5]], key[5])


def test_inductor_compiles():
    inputs = build(AttentionCase())
    function = torch.compile(
        lambda q: swa_attn.prefill(q * 2, *inputs.prefill_args[1:], **inputs.options)[0] + 1, fullgraph=True
    )
    with torch.no_grad():
        expected = swa_attn.prefill(inputs.q * 2, *inputs.prefill_args[1:], **inputs.options)[0] + 1
        assert torch.equal(function(inputs.q), expected)


def test_meta_tensors_give_shapes():
    inputs = build(AttentionCase(seqs=((2, 9), (2, 14)), v_head_dim=24))
    meta = [x.to("meta") for x in inputs.decode_args]
    out, lse = OPS.decode(*meta, softmax_scale=1.0)
    assert out.shape == (2, 2, 4, 24) and lse.shape == (2, 2, 4) and lse.dtype == torch.float32


@pytest.mark.parametrize("argument", ["q", "k_cache", "v_cache", "sinks"])
def test_requires_grad_is_refused(argument):
    inputs = build(AttentionCase(sinks=True))
    if argument == "sinks":
        inputs.options["sinks"].requires_grad_()
    else:
        setattr(inputs, argument, getattr(inputs, argument).clone().requires_grad_())
    for call in (swa_attn.prefill, lambda *a, window, **o: OPS.prefill(*a, window=window, **o)):
        with pytest.raises(NotImplementedError, match=f"no backward, but {argument} requires grad"):
            call(*inputs.prefill_args, **inputs.options)
    with torch.no_grad():
        swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    with torch.inference_mode():
        swa_attn.prefill(*inputs.prefill_args, **inputs.options)


ATTENTION_ERRORS = [  # argument, what replaces it (a function of the right one), error, what the message must say
    (
        "q",
        lambda q: q[0],
        ValueError,
        r"q must be 3-dimensional \[total_q, num_q_heads, head_dim\], got shape \[4, 16\]",
    ),
    ("q", lambda q: q.double(), TypeError, "q must be float32 or bfloat16 or float16, got float64"),
    ("q", lambda q: q[:, :3], ValueError, "q must be of a multiple of num_kv_heads = 2 query heads, got 3"),
    ("q", lambda q: q.mT.contiguous().mT, ValueError, "q must be contiguous in its last dimension, got strides"),
    ("k_cache", lambda k: k[..., :8], ValueError, r"k_cache must be of shape \[.*16\], got \[10, 4, 2, 8\]"),
    ("k_cache", lambda k: k.half(), TypeError, "k_cache must be float32 or float8_e4m3fn, got float16"),
    ("v_cache", lambda v: v[:3], ValueError, r"v_cache must be of shape \[10, 4, 2, v_head_dim\], got \[3, 4, 2, 16\]"),
    ("v_cache", lambda v: v.to(FP8), TypeError, "v_cache must be float32, got float8_e4m3fn"),
    ("block_table", lambda t: t.long(), TypeError, "block_table must be int32, got int64"),
    ("block_table", lambda t: t[:1], ValueError, r"block_table must be of shape \[2, max_pages\], got \[1, 4\]"),
    ("seqlens_k", lambda s: s.long(), TypeError, "seqlens_k must be int32, got int64"),
    ("seqlens_k", lambda s: s[:, None], ValueError, "seqlens_k must be 1-dimensional"),
    ("cu_seqlens_q", lambda c: c[1:], ValueError, r"cu_seqlens_q must be of shape \[3\], got \[2\]"),
    ("cu_seqlens_q", lambda c: c.to("meta"), ValueError, "cu_seqlens_q must be on cpu like q, got meta"),
    ("window", lambda w: 0, ValueError, "window must be at least 1 .* or -1 for none, got 0"),
    ("window", lambda w: -2, ValueError, "window must be at least 1 .* got -2"),
    ("softcap", lambda c: -1.0, ValueError, "softcap must be 0 .off. or positive, got -1.0"),
    ("softcap", lambda c: float("nan"), ValueError, "softcap must be .* got nan"),
    ("sinks", lambda s: torch.zeros(3), ValueError, r"sinks must be of shape \[4\], got \[3\]"),
    ("k_scale", lambda s: torch.ones(10, 2), ValueError, "k_scale must be None unless the cache is float8_e4m3fn"),
    ("k_host_cache", lambda h: torch.zeros(3, 4, 2, 16), ValueError, "v_host_cache must be given together with"),
    ("out", lambda o: torch.zeros(4, 4, 16), ValueError, "lse must be given together with the other output"),
]


@pytest.mark.parametrize(
    "argument, change, error, message", ATTENTION_ERRORS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_prefill_errors_name_the_argument(argument, change, error, message):
    inputs = build(AttentionCase(seqs=((2, 9), (2, 14))))
    names = ("q", "k_cache", "v_cache", "block_table", "seqlens_k", "cu_seqlens_q")
    arguments = dict(zip(names, inputs.prefill_args, strict=True)) | inputs.options
    arguments[argument] = change(arguments.get(argument))
    with pytest.raises(error, match="swa_attn.prefill: " + message):
        swa_attn.prefill(**arguments)


FP8_ERRORS = [
    ("k_scale", lambda s: s[:5], r"k_scale must be of shape \[10, 2\], got \[5, 2\]"),
    ("v_scale", lambda s: s.half(), "v_scale must be float32, got float16"),
    ("v_host_cache", lambda h: h[:1], r"v_host_cache must be of shape"),
]


@pytest.mark.parametrize("argument, change, message", FP8_ERRORS, ids=lambda x: x if isinstance(x, str) else "")
def test_fp8_and_host_errors_name_the_argument(argument, change, message):
    inputs = build(AttentionCase(seqs=((2, 9), (2, 14)), cache_dtype=FP8, host=0.5))
    inputs.options[argument] = change(inputs.options[argument])
    with pytest.raises((ValueError, TypeError), match="swa_attn.prefill: " + message):
        swa_attn.prefill(*inputs.prefill_args, **inputs.options)


def test_decode_errors():
    inputs = build(AttentionCase(seqs=((2, 9), (2, 14))))
    q, *where = inputs.decode_args
    with pytest.raises(ValueError, match=r"swa_attn.decode: q must be of q_len 1 to 8 .* got q_len 9"):
        swa_attn.decode(q[:, :1].expand(-1, 9, -1, -1), *where)
    with pytest.raises(ValueError, match=r"swa_attn.decode: seqlens_k must be of shape"):
        swa_attn.decode(q[:1], *where)


def test_page_op_errors():
    (key, value, k_cache, v_cache, slots), _ = page_arguments("append_kv")
    with pytest.raises(TypeError, match="append_kv: slot_mapping must be int64, got int32"):
        swa_attn.append_kv(key, value, k_cache, v_cache, slots.int())
    with pytest.raises(ValueError, match=r"append_kv: slot_mapping must be of shape \[3\], got \[2\]"):
        swa_attn.append_kv(key, value, k_cache, v_cache, slots[:2])
    with pytest.raises(ValueError, match="append_kv: k_cache must be of num_kv_heads 1 like key, got 2"):
        swa_attn.append_kv(key[:, :1], value[:, :1], k_cache, v_cache, slots)
    (src, dst, src_pages, dst_pages), _ = page_arguments("copy_pages")
    with pytest.raises(ValueError, match="copy_pages: dst_scale must be given when converting"):
        swa_attn.copy_pages(src, dst.to(FP8), src_pages, dst_pages)
    with pytest.raises(
        TypeError, match="copy_pages: dst must be float32 or float8_e4m3fn for a float32 src, got float16"
    ):
        swa_attn.copy_pages(src, dst.half(), src_pages, dst_pages)
    (out_a, lse_a, out_b, lse_b), _ = page_arguments("merge_states")
    with pytest.raises(ValueError, match=r"merge_states: lse_b must be of shape \[5, 2\], got \[4, 2\]"):
        swa_attn.merge_states(out_a, lse_a, out_b, lse_b[:4])


@pytest.mark.parametrize("src_on, dst_on", [("meta", "meta"), ("meta", "cpu"), ("cpu", "meta")])
def test_copy_pages_takes_pools_of_two_tiers(src_on, dst_on):
    """Meta stands in for a GPU, which the argument checks cannot tell from it; page lists may be on either side."""
    (src, dst, *pages), _ = page_arguments("copy_pages")
    for pages_on in ("cpu", "meta"):
        _checks.check_copy_pages(src.to(src_on), dst.to(dst_on), *(p.to(pages_on) for p in pages))


def test_copy_pages_on_the_cpu_refuses_lists_elsewhere():
    (src, dst, src_pages, dst_pages), _ = page_arguments("copy_pages")
    with pytest.raises(ValueError, match=r"copy_pages: src_pages must be on cpu like dst, or on the CPU .* got meta"):
        _checks.check_copy_pages(src, dst, src_pages.to("meta"), dst_pages)


SCALAR_ERRORS = [  # a float32 must hold it, as a normal number; a wrong type is one of ours, not the dispatcher's
    (
        "softmax_scale",
        1e-320,
        ValueError,
        "softmax_scale must be 0 or of a magnitude from 2.*-126 to 2.*127, as a float32 is, got 1e-320",
    ),
    ("softmax_scale", 2.0**-127, ValueError, "softmax_scale must be .* got 5.87"),
    ("softmax_scale", 2.0**127 * 1.01, ValueError, "softmax_scale must be .* got 1.71"),
    ("softmax_scale", 10**400, ValueError, "softmax_scale must be .* got 1000"),
    ("softmax_scale", float("inf"), ValueError, "softmax_scale must be .* got inf"),
    ("softmax_scale", float("nan"), ValueError, "softmax_scale must be .* got nan"),
    ("softmax_scale", True, TypeError, "softmax_scale must be a number, got bool"),
    ("softmax_scale", "1", TypeError, "softmax_scale must be a number, got str"),
    ("softmax_scale", torch.tensor(1.0), TypeError, "softmax_scale must be a number, got Tensor"),
    ("softcap", 1e-320, ValueError, "softcap must be 0 or of a magnitude .* got 1e-320"),
    ("softcap", float("inf"), ValueError, "softcap must be 0 or of a magnitude .* got inf"),
    ("softcap", 2.0**128, ValueError, "softcap must be 0 or of a magnitude .* got 3.4"),
    ("softcap", None, TypeError, "softcap must be a number, got None"),
    ("softcap", False, TypeError, "softcap must be a number, got bool"),
    ("softcap", 2.0**-126, ValueError, "softmax_scale / softcap must be 0 or of a magnitude .* got 2.7"),
    ("window", True, TypeError, "window must be an integer or None, got bool"),
    ("window", 8.0, TypeError, "window must be an integer or None, got float"),
    ("window", 2**63, ValueError, "window must be an integer of 64 bits or None, got 9223372036854775808"),
    ("window", -(2**70), ValueError, "window must be an integer of 64 bits or None"),
]


@pytest.mark.parametrize("argument, value, error, message", SCALAR_ERRORS, ids=lambda x: str(x)[:30])
def test_scalars_that_a_float32_does_not_hold_are_refused(argument, value, error, message):
    inputs = build(AttentionCase())
    options = inputs.options | {"softmax_scale": 2.0**-3, argument: value}
    if argument == "softcap" and value == 2.0**-126:
        options["softmax_scale"] = 2.0**5
    with pytest.raises(error, match="swa_attn.prefill: " + message):
        swa_attn.prefill(*inputs.prefill_args, **options)


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-20, 2.0**30, 2.0**127])
@pytest.mark.parametrize("softcap", [0.0, 2.0**-10, 2.0**10])
def test_scales_at_the_ends_of_float32(backend, scale, softcap):
    """Scores far below 1, whatever the scale is made of; what capping needs, a quotient, must be a float32 too."""
    inputs = build(fit(AttentionCase(seqs=((3, 20),)), backend))
    inputs.q = (inputs.q.float() * (2.0**-8 / scale)).to(inputs.q.dtype)
    if not torch.isfinite(inputs.q).all():
        pytest.skip("the queries' type does not hold what makes such scores")
    inputs.options |= {"softmax_scale": scale, "softcap": softcap}
    if softcap and not _checks.SMALLEST <= scale / softcap <= _checks.LARGEST:
        with pytest.raises(ValueError, match="softmax_scale / softcap must be"):
            swa_attn.prefill(*inputs.prefill_args, **inputs.options)
        return
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))


@pytest.mark.parametrize("window", [2**31 - 1, 2**63 - 1])
def test_windows_up_to_what_an_integer_holds(backend, window):
    """A verify step of a padding sequence has rows before position 0, from which such a window cannot be taken away."""
    inputs = build(fit(AttentionCase(seqs=((8, 3), (8, 0), (8, 30)), window=None), backend))
    everything = swa_attn.decode(*inputs.decode_args, **inputs.options)
    for got in (
        swa_attn.decode(*inputs.decode_args, **(inputs.options | {"window": window})),
        OPS.decode(*inputs.decode_args, **(inputs.options | {"window": window})),
    ):
        assert torch.equal(got[0], everything[0]) and torch.equal(got[1], everything[1])
    out, lse = swa_attn.prefill(*inputs.prefill_args, **(inputs.options | {"window": window}))
    assert_close_to_oracle(inputs, out, lse)


ODD = {
    "None": (lambda x: None, "a tensor, got None"),
    "list": (lambda x: x.tolist(), "a tensor( or None)?, got list"),
    "numpy": (lambda x: x.numpy(), "a tensor( or None)?, got ndarray"),
    "sparse": (lambda x: x.to_sparse(), "a dense tensor in memory, got a sparse tensor"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "a dense tensor in memory, got a nested tensor"),
    "zero": (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), ".* in memory, got a ZeroTensor"),
    "negated": (lambda x: torch._neg_view(x), "a dense tensor in memory, got a view that negates"),
    "fake": (lambda x: FakeTensorMode().from_tensor(x), "a FakeTensor like .*, got a tensor with memory"),
    "meta": (lambda x: x.to("meta"), "(on .* like .*, got .*|a tensor with memory like .*, got a meta tensor)"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_dense_tensor_is_refused_by_name(kind):
    change, message = ODD[kind]
    inputs = build(AttentionCase(seqs=((2, 9), (2, 14))))
    where = ("q", "k_cache", "v_cache", "block_table", "seqlens_k")
    calls = [(swa_attn.decode, dict(zip(where, inputs.decode_args)))]
    calls += [(swa_attn.prefill, dict(zip((*where, "cu_seqlens_q"), inputs.prefill_args)))]
    args, options = page_arguments("append_kv")
    calls += [(swa_attn.append_kv, dict(zip(("key", "value", "k_cache", "v_cache", "slot_mapping"), args)) | options)]
    args, options = page_arguments("merge_states")
    calls += [(swa_attn.merge_states, dict(zip(("out_a", "lse_a", "out_b", "lse_b"), args)) | options)]
    calls += [
        (swa_attn.copy_pages, dict(zip(("src", "dst", "src_pages", "dst_pages"), page_arguments("copy_pages")[0])))
    ]
    optional = ("k_host_cache", "v_host_cache", "sinks")
    for op, arguments in calls:
        for name, x in arguments.items():
            if name in optional and kind == "None":
                continue
            blamed = r"\w+" if kind in ("fake", "meta") else name
            with pytest.raises((TypeError, ValueError), match=f"swa_attn.{op.__name__}: {blamed} must be {message}"):
                op(**(arguments | {name: change(x)}))
    if kind in ("sparse", "zero", "negated"):
        with pytest.raises(TypeError, match=f"swa_attn.decode: out must be {message}"):
            swa_attn.decode(*inputs.decode_args, out=change(torch.zeros(2, 2, 4, 16)), lse=torch.zeros(2, 2, 4))


def test_two_windows_in_one_process(backend):
    """A window must not stick from one call to the next (compiled kernels, cached plans)."""
    case = fit(AttentionCase(seqs=((3, 20),)), backend)
    wide, narrow = build(replace(case, window=None)), build(replace(case, window=2))
    first = swa_attn.prefill(*wide.prefill_args, **wide.options)[0]
    second = swa_attn.prefill(*narrow.prefill_args, **narrow.options)[0]
    assert torch.equal(swa_attn.prefill(*wide.prefill_args, **wide.options)[0], first)
    assert torch.equal(swa_attn.prefill(*narrow.prefill_args, **narrow.options)[0], second)
    assert not torch.allclose(first, second)


def test_pageable_host_memory_is_refused_for_a_gpu():
    """A kernel would fault on it and take the process along."""
    host = torch.zeros(2, 4, 2, 16)
    _checks.check_pinned("decode", torch.device("cpu"), k_host_cache=host)
    _checks.check_pinned("decode", torch.device("cuda", 0), k_host_cache=None)
    with pytest.raises(ValueError, match=r"swa_attn.decode: v_host_cache must be in pinned memory .* on cuda:0"):
        _checks.check_pinned("decode", torch.device("cuda", 0), k_host_cache=None, v_host_cache=host)
