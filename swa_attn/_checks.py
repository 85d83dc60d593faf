"""Every argument of every op is checked here, once, before a backend or a fake sees it.

Only what a tensor says about itself is checked (dtype, shape, strides, device): values stay on the device, so nothing
synchronises. An error names the op, the argument, what was expected and what was given.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


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
    if page_size < 1 or num_kv_heads < 1:
        args.fail("k_cache", "of page_size and num_kv_heads at least 1", f"shape {list(k_cache.shape)}")
    args.tensor("v_cache", v_cache, [num_pages, page_size, num_kv_heads, v_head_dim], [k_cache.dtype])
    if (k_host_cache is None) != (v_host_cache is None):
        missing = "k_host_cache" if k_host_cache is None else "v_host_cache"
        args.fail(missing, "given together with the other host cache", None)
    num_host_pages = 0
    for name, host, device_cache in (("k_host_cache", k_host_cache, k_cache), ("v_host_cache", v_host_cache, v_cache)):
        if host is not None:
            expected = [num_host_pages or "num_host_pages", *device_cache.shape[1:]]
            args.tensor(name, host, expected, [device_cache.dtype], host=True)
            num_host_pages = host.shape[0]
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
    if not softcap >= 0:
        args.fail("softcap", "0 (off) or positive", softcap)


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
    host = k_host_cache, v_host_cache
    _attention(args, q, k_cache, v_cache, block_table, seqlens_k, window, softcap, sinks, k_scale, v_scale, *host)
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
    host = k_host_cache, v_host_cache
    _attention(args, q, k_cache, v_cache, block_table, seqlens_k, window, softcap, sinks, k_scale, v_scale, *host)
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
    if out_a.dim() < 2:
        args.fail("out_a", "of shape [..., num_q_heads, v_head_dim]", list(out_a.shape))
    shape = list(out_a.shape)
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
    # The op runs where the one pool that is not on the host lies; everything else is there or on the host.
    pool = src if src.device.type != "cpu" else dst
    args.device, args.device_of = pool.device, "src" if pool is src else "dst"
    args.tensor("src_pages", src_pages, ["num_pairs"], [torch.int64], contiguous=True, host=True)
    args.tensor("dst_pages", dst_pages, [src_pages.shape[0]], [torch.int64], contiguous=True, host=True)
    args.tensor("src", src, ["num_layers", "num_pages", "page_size", "num_kv_heads", "dim"], [*FLOATS, FP8], host=True)
    num_layers, _, page_size, num_kv_heads, dim = src.shape
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
