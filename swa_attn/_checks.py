"""Every argument of every op is checked here, once, before a backend or a fake sees it.

Only what a tensor says about itself is checked (dtype, shape, strides, device): values stay on the device, so nothing
synchronises. An error names the op, the argument, what was expected and what was given.
"""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from torch._C import FunctionSchema
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from . import _memory

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
MAX_WINDOW = 2**31 - 1  # lengths are int32: a window of more keys is none, and needs more bits than kernels have
MAX_PAGES = 2**31 - 1  # page ids are int32
# What a float32 holds as a normal number, with room for the factor log2(e) that kernels apply to scores.
SMALLEST, LARGEST = 2.0**-126, 2.0**127


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def _type_name(x: object) -> str:
    return "None" if x is None else type(x).__name__


class Arguments:
    """The arguments of one call, checked one question at a time: `Arguments("decode").tensor("q", q, ...)`."""

    def __init__(self, op: str):
        self.op = op
        self.device: torch.device | None = None
        self.device_of = ""

    def fail(self, name: str, expected: str, given: object, error: type[Exception] = ValueError) -> None:
        raise error(f"swa_attn.{self.op}: {name} must be {expected}, got {given}")

    def tensor(
        self,
        name: str,
        x: Tensor,
        shape: Sequence[int | str],
        dtypes: Sequence[torch.dtype],
        *,
        host: bool = False,
        contiguous: bool = False,
        strided: bool = False,
    ) -> None:
        """`shape` mixes sizes that must match with names of free ones; a host tensor may live on the CPU for any op.

        The last dimension must be contiguous, all must if `contiguous`, and none if `strided`.
        """
        if not isinstance(x, Tensor):
            self.fail(name, "a tensor", _type_name(x), TypeError)
        sizes = x.shape  # asked for once: every call runs this for each of its tensors
        if len(sizes) != len(shape):
            self.fail(name, f"{len(shape)}-dimensional [{', '.join(map(str, shape))}]", f"shape {list(sizes)}")
        for size, expected in zip(sizes, shape):
            if size != expected and not isinstance(expected, str):
                self.fail(name, f"of shape [{', '.join(map(str, shape))}]", f"{list(sizes)}")
        if x.dtype not in dtypes:
            self.fail(name, _names(dtypes), str(x.dtype).removeprefix("torch."), TypeError)
        if contiguous:
            if not x.is_contiguous():
                self.fail(name, "contiguous", f"strides {list(x.stride())}")
        elif not strided and sizes and sizes[-1] > 1 and x.stride(-1) != 1:
            self.fail(name, "contiguous in its last dimension", f"strides {list(x.stride())}")
        if x.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"swa_attn.{self.op} has no backward, but {name} requires grad: call it under torch.no_grad() or "
                "torch.inference_mode(), or detach the argument"
            )
        device = x.device
        if host:
            if device.type != "cpu" and device != self.device:
                self.fail(name, f"on {self.device} like {self.device_of}, or on the CPU (pinned for a GPU)", device)
        elif self.device is None:
            self.device, self.device_of = device, name
        elif device != self.device:
            self.fail(name, f"on {self.device} like {self.device_of}", device)

    def number(self, name: str, x: float) -> None:
        """An option that kernels compute with in float32."""
        if not (x == 0 or SMALLEST <= abs(x) <= LARGEST):
            self.fail(name, "0 or of a magnitude from 2**-126 to 2**127, as a float32 is", x)


def require_numbers(op: str, softmax_scale: float | None, softcap: float, window: int | None) -> None:
    """What torch's dispatcher would refuse without naming the argument, or take for something else (True for 1)."""
    if torch.compiler.is_compiling():  # the arguments are what was traced
        return
    args = Arguments(op)
    for name, number in (("softmax_scale", softmax_scale), ("softcap", softcap)):
        if name == "softmax_scale" and number is None:
            continue
        if not _is_a(number, Real):
            args.fail(name, "a number", _type_name(number), TypeError)
        if isinstance(number, int):  # of any size in Python
            args.number(name, number)
    if window is not None and not _is_a(window, Integral):
        args.fail("window", "an integer or None", _type_name(window), TypeError)
    if window is not None and not -(2**63) <= window < 2**63:
        args.fail("window", "an integer of 64 bits or None", window)


def _is_a(x: object, kind: type) -> bool:
    return isinstance(x, kind) and not isinstance(x, bool)


def default_scale(op: str, q: Tensor) -> float:
    """`head_dim ** -0.5`, or anything for a q that the op will refuse."""
    if not isinstance(q, Tensor):
        Arguments(op).fail("q", "a tensor", _type_name(q), TypeError)
    if q.is_nested:  # has no shape to ask for
        Arguments(op).fail("q", DENSE, "a nested tensor", TypeError)
    return q.shape[-1] ** -0.5 if q.dim() and q.shape[-1] else 1.0


def explain(schema: FunctionSchema, args: Sequence[object], options: dict[str, object]) -> None:
    """After a call that failed: raise what names the argument, if torch refused one before the op could look at it."""
    op = schema.name.partition("::")[2]
    given = dict(zip((argument.name for argument in schema.arguments), args)) | options
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    tensors = {name: given.get(name) for name, kind in kinds.items() if kind.endswith(("Tensor", "Optional[Tensor]"))}
    optional = [name for name, kind in kinds.items() if kind.startswith("Optional")]
    fake = None
    for name, x in tensors.items():
        if x is None and name in optional:
            continue
        if not isinstance(x, Tensor):
            kind = "a tensor or None" if name in optional else "a tensor"
            Arguments(op).fail(name, kind, _type_name(x), TypeError)
        if isinstance(x, FakeTensor):
            fake = name, x.fake_mode
    refuse_odd_tensors(op, tensors)
    if fake is not None:
        _require_all_fake(op, *fake, tensors)
    if "window" in options:
        require_numbers(op, *(options[name] for name in ("softmax_scale", "softcap", "window")))


def _require_all_fake(op: str, fake: str, mode: FakeTensorMode, tensors: dict[str, Tensor | None]) -> None:
    for name, x in tensors.items():
        if x is not None and not isinstance(x, FakeTensor) and not mode.allow_non_fake_inputs:
            Arguments(op).fail(name, f"a FakeTensor like {fake}", "a tensor with memory", TypeError)


# The dispatch keys under which torch asks for an op on tensors without strides or memory of their own.
ODD_KEYS = [
    kind + device for kind in ("Sparse", "SparseCsr", "Quantized", "NestedTensor") for device in ("CPU", "CUDA")
]
ODD_KEYS += ["MkldnnCPU", "ZeroTensor", "Negative", "Conjugate"]
DENSE = "a dense tensor in memory"


def _oddness(x: Tensor) -> str | None:
    """Why a kernel cannot read x through its address and strides, or None."""
    for holds, what in (
        (x.is_nested, "a nested tensor"),
        (x.is_quantized, "a quantized tensor"),
        (x.is_mkldnn, "an MKL-DNN tensor"),
        (x.layout != torch.strided, "a sparse tensor"),
        (x._is_zerotensor(), "a ZeroTensor, which has no memory"),
        (x.is_neg(), "a view that negates: call resolve_neg()"),
        (x.is_conj(), "a view that conjugates: call resolve_conj()"),
    ):
        if holds:
            return what
    return None


def refuse_odd_tensors(op: str, arguments: dict[str, object]) -> None:
    """Raise TypeError for the first argument that is a tensor without strides or memory of its own."""
    for name, x in arguments.items():
        odd = _oddness(x) if isinstance(x, Tensor) else None
        if odd:
            Arguments(op).fail(name, DENSE, odd, TypeError)


def check_written(op: str, names: Sequence[str], tensors: Sequence[Tensor | None], num_written: int) -> None:
    """What an op writes, the first num_written, must not share memory: with itself, another output, an input.

    Apart from the other checks, because a fake tensor has no memory.
    """
    spans = []  # of the storages: a look at addresses decides nearly every call
    for i, x in enumerate(tensors):
        if x is None:
            continue
        if i < num_written and _memory.overlaps_itself(x):
            strides = f"strides {list(x.stride())}"
            Arguments(op).fail(names[i], "without elements that share memory, since it is written", strides)
        storage = x.untyped_storage()
        start = storage.data_ptr()
        spans.append((start, start + storage.nbytes(), i))
    spans.sort()
    for n, (_, end, i) in enumerate(spans):
        for start, _, j in spans[n + 1 :]:
            if start >= end:
                break
            first, second = (i, j) if i < j else (j, i)
            if first < num_written and _memory.overlap(tensors[first], tensors[second]):
                apart = f"apart in memory from {names[second]}, since it is written"
                Arguments(op).fail(names[first], apart, "tensors that overlap")


def _views_of_one_pool(x: Tensor, other: Tensor, whole: int) -> bool:
    """Whether two tensors are ranges of the pages of one pool, the second dimension, in the same layers: a page of one is a
    page of the other as it is, or shares nothing with it."""
    if x.dtype != other.dtype or x.stride() != other.stride() or x.shape[whole:] != other.shape[whole:]:
        return False
    return x.shape[0] == other.shape[0] and pages_apart(x, other) is not None


def pages_apart(x: Tensor, other: Tensor) -> int | None:
    """By how many pages, the second dimension, `other` begins later in the same pool; None if it is no range of the pages
    that `x` has a range of."""
    distance, stride = other.data_ptr() - x.data_ptr(), x.stride(1) * x.itemsize
    if distance == 0:
        return 0
    if stride == 0 or distance % stride or abs(distance // stride) >= max(x.shape[1], other.shape[1]):
        return None
    return distance // stride


def check_copy_written(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    """As `check_written`; but pages may move within one pool, and then only their numbers tell whether they overlap."""
    read_pool = None if _views_of_one_pool(src, dst, 2) else src
    read_scale = src_scale
    if src_scale is not None and dst_scale is not None and _views_of_one_pool(src_scale, dst_scale, 2):
        read_scale = None
    names = "dst", "dst_scale", "src", "src_pages", "dst_pages", "src_scale"
    check_written("copy_pages", names, (dst, dst_scale, read_pool, src_pages, dst_pages, read_scale), 2)


def check_no_mixed_meta(op: str, **tensors: Tensor) -> None:
    """Tensors that may be on two devices: a meta tensor among others would make the call do nothing, without a word."""
    meta = [name for name, x in tensors.items() if x.device.type == "meta"]
    if 0 < len(meta) < len(tensors):
        other, device = next((name, x.device) for name, x in tensors.items() if name not in meta)
        Arguments(op).fail(meta[0], f"a tensor with memory like {other} on {device}", "a meta tensor", TypeError)


def check_pinned(op: str, device: torch.device, **host_tensors: Tensor | None) -> None:
    """Memory of the CPU that a GPU op reads or writes in place must be pinned, or the kernel would fault.

    Apart from the other checks, because a fake tensor cannot be asked.
    """
    if device.type != "cuda":
        return
    for name, x in host_tensors.items():
        if x is not None and x.device.type == "cpu" and not x.is_pinned():
            raise ValueError(
                f"swa_attn.{op}: {name} must be in pinned memory for an op on {device}, got pageable memory: "
                "allocate it with pin_memory=True"
            )


def _cache(
    args: Arguments,
    k_cache: Tensor,
    v_cache: Tensor,
    head_dim: int,
    v_head_dim: int | str,
    dtypes: Sequence[torch.dtype],
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    k_host_cache: Tensor | None,
    v_host_cache: Tensor | None,
) -> None:
    """The pools that page ids point into. k_cache `[pages, page_size, Hkv, Dk]`, v_cache `[pages, page_size, Hkv, Dv]`."""
    args.tensor("k_cache", k_cache, ["num_pages", "page_size", "num_kv_heads", head_dim], dtypes)
    num_pages, page_size, num_kv_heads, _ = k_cache.shape
    if min(page_size, num_kv_heads, k_cache.shape[3]) < 1:
        args.fail("k_cache", "of page_size, num_kv_heads and head_dim at least 1", f"shape {list(k_cache.shape)}")
    args.tensor("v_cache", v_cache, [num_pages, page_size, num_kv_heads, v_head_dim], [k_cache.dtype])
    if v_cache.shape[3] < 1:
        args.fail("v_cache", "of v_head_dim at least 1", f"shape {list(v_cache.shape)}")
    if (k_host_cache is None) != (v_host_cache is None):
        missing = "k_host_cache" if k_host_cache is None else "v_host_cache"
        args.fail(missing, "given together with the other host cache", None)
    num_host_pages = 0
    for name, host, device_cache in (("k_host_cache", k_host_cache, k_cache), ("v_host_cache", v_host_cache, v_cache)):
        if host is not None:
            expected = [num_host_pages or "num_host_pages", *device_cache.shape[1:]]
            args.tensor(name, host, expected, [device_cache.dtype], host=True)
            num_host_pages = host.shape[0]
    if num_pages + num_host_pages > MAX_PAGES or page_size > MAX_PAGES:
        args.fail("k_cache", "of fewer than 2**31 pages (host pages included) and slots per page", list(k_cache.shape))
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None:
            continue
        if k_cache.dtype != FP8:
            args.fail(
                name, f"None unless the cache is {_names([FP8])}", f"a scale for a {_names([k_cache.dtype])} cache"
            )
        args.tensor(name, scale, [num_pages + num_host_pages, num_kv_heads], [torch.float32], contiguous=True)


def check_append_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
) -> None:
    args = Arguments("append_kv")
    args.tensor("key", key, ["num_tokens", "num_kv_heads", "head_dim"], FLOATS)
    num_tokens, num_kv_heads, head_dim = key.shape
    args.tensor("value", value, [num_tokens, num_kv_heads, "v_head_dim"], [key.dtype])
    _cache(
        args, k_cache, v_cache, head_dim, value.shape[2], [*FLOATS, FP8], k_scale, v_scale, k_host_cache, v_host_cache
    )
    if k_cache.shape[2] != num_kv_heads:
        args.fail("k_cache", f"of num_kv_heads {num_kv_heads} like key", k_cache.shape[2])
    args.tensor("slot_mapping", slot_mapping, [num_tokens], [torch.int64], contiguous=True)


def _attention(
    args: Arguments,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    softmax_scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    k_host_cache: Tensor | None,
    v_host_cache: Tensor | None,
) -> None:
    num_q_heads, head_dim = q.shape[-2:]
    dtypes = [q.dtype, FP8]
    _cache(args, k_cache, v_cache, head_dim, "v_head_dim", dtypes, k_scale, v_scale, k_host_cache, v_host_cache)
    num_kv_heads = k_cache.shape[2]
    if num_q_heads % num_kv_heads != 0 or num_q_heads < 1:
        args.fail("q", f"of a multiple of num_kv_heads = {num_kv_heads} query heads", num_q_heads)
    args.tensor("seqlens_k", seqlens_k, ["num_seqs"], [torch.int32], contiguous=True)
    args.tensor("block_table", block_table, [seqlens_k.shape[0], "max_pages"], [torch.int32])
    if sinks is not None:
        args.tensor("sinks", sinks, [num_q_heads], FLOATS, contiguous=True)
    if window != -1 and window < 1:
        args.fail("window", "at least 1 (visible keys, the query's own included) or -1 for none", window)
    args.number("softmax_scale", softmax_scale)
    if not softcap >= 0:
        args.fail("softcap", "0 (off) or positive", softcap)
    args.number("softcap", softcap)
    if softcap > 0:
        args.number("softmax_scale / softcap", softmax_scale / softcap)


def check_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
    softmax_scale: float,
    window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    args = Arguments("prefill")
    args.tensor("q", q, ["total_q", "num_q_heads", "head_dim"], FLOATS)
    options, scales = (softmax_scale, window, softcap, sinks), (k_scale, v_scale)
    host = k_host_cache, v_host_cache
    _attention(args, q, k_cache, v_cache, block_table, seqlens_k, *options, *scales, *host)
    args.tensor("cu_seqlens_q", cu_seqlens_q, [seqlens_k.shape[0] + 1], [torch.int32], contiguous=True)
    _outputs(args, q, v_cache, out, lse)


def check_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    softmax_scale: float,
    window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    args = Arguments("decode")
    args.tensor("q", q, ["num_seqs", "q_len", "num_q_heads", "head_dim"], FLOATS)
    if not 1 <= q.shape[1] <= 8:
        args.fail("q", "of q_len 1 to 8 (longer queries are prefill's)", f"q_len {q.shape[1]}")
    options, scales = (softmax_scale, window, softcap, sinks), (k_scale, v_scale)
    host = k_host_cache, v_host_cache
    _attention(args, q, k_cache, v_cache, block_table, seqlens_k, *options, *scales, *host)
    if seqlens_k.shape[0] != q.shape[0]:
        args.fail("seqlens_k", f"of shape [{q.shape[0]}] like q's num_seqs", list(seqlens_k.shape))
    _outputs(args, q, v_cache, out, lse)


def _outputs(args: Arguments, q: Tensor, v_cache: Tensor, out: Tensor | None, lse: Tensor | None) -> None:
    if out is not None:
        args.tensor("out", out, [*q.shape[:-1], v_cache.shape[3]], [q.dtype])
    if lse is not None:
        args.tensor("lse", lse, list(q.shape[:-1]), [torch.float32], contiguous=True)


def check_merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, sinks: Tensor | None = None) -> None:
    args = Arguments("merge_states")
    if not isinstance(out_a, Tensor):
        args.fail("out_a", "a tensor", _type_name(out_a), TypeError)
    if out_a.dim() < 2:
        args.fail("out_a", "of shape [..., num_q_heads, v_head_dim]", list(out_a.shape))
    shape = list(out_a.shape)
    if min(shape[-2:]) < 1:
        args.fail("out_a", "of num_q_heads and v_head_dim at least 1", f"shape {shape}")
    args.tensor("out_a", out_a, shape, FLOATS, strided=True)
    args.tensor("lse_a", lse_a, shape[:-1], [torch.float32], strided=True)
    args.tensor("out_b", out_b, shape, [out_a.dtype], strided=True)
    args.tensor("lse_b", lse_b, shape[:-1], [torch.float32], strided=True)
    if sinks is not None:
        args.tensor("sinks", sinks, [shape[-2]], FLOATS, contiguous=True)


def check_copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    args = Arguments("copy_pages")
    for name, x in (("src", src), ("dst", dst), ("src_pages", src_pages)):
        if not isinstance(x, Tensor):
            args.fail(name, "a tensor", _type_name(x), TypeError)
    # The op runs where the one pool that is not on the host lies; everything else is there or on the host.
    pool = src if src.device.type != "cpu" else dst
    args.device, args.device_of = pool.device, "src" if pool is src else "dst"
    args.tensor("src_pages", src_pages, ["num_pairs"], [torch.int64], contiguous=True, host=True)
    args.tensor("dst_pages", dst_pages, [src_pages.shape[0]], [torch.int64], contiguous=True, host=True)
    args.tensor("src", src, ["num_layers", "num_pages", "page_size", "num_kv_heads", "dim"], [*FLOATS, FP8], host=True)
    num_layers, _, page_size, num_kv_heads, dim = src.shape
    if min(page_size, num_kv_heads, dim) < 1:
        args.fail("src", "of page_size, num_kv_heads and dim at least 1", f"shape {list(src.shape)}")
    args.tensor("dst", dst, [num_layers, "num_pages", page_size, num_kv_heads, dim], [*FLOATS, FP8], host=True)
    converts = src.dtype != dst.dtype
    if converts and FP8 not in (src.dtype, dst.dtype):
        args.fail("dst", f"{_names([src.dtype, FP8])} for a {_names([src.dtype])} src", _names([dst.dtype]), TypeError)
    for name, scale, pool in (("src_scale", src_scale, src), ("dst_scale", dst_scale, dst)):
        if scale is None:
            if converts and pool.dtype == FP8:
                args.fail(name, "given when converting from or to float8_e4m3fn", None)
            continue
        if pool.dtype != FP8:
            args.fail(name, f"None for a {_names([pool.dtype])} pool", "a tensor")
        args.tensor(name, scale, [num_layers, pool.shape[1], num_kv_heads], [torch.float32], host=True)
    if src.dtype == dst.dtype and (src_scale is None) != (dst_scale is None):
        args.fail("dst_scale" if dst_scale is None else "src_scale", "given together with the other scale", None)
