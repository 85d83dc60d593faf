"""Random calls of the ops, from right ones to nonsense: a call is made from its seed alone."""

import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from swa_attn.testing import AttentionCase, build
from swa_attn.testing.cases import empty_pool

FP8 = torch.float8_e4m3fn
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CANARY = 0xA5
KERNEL_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256))
WINDOWS = (1, 2, 3, 7, 16, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
ODD_WINDOWS = (0, -1, -2, -(2**63), 2**63, 2**80, 1.0, True, "8", torch.tensor(3))
NUMBERS = (0.0, 1.0, -1.0, 1e-320, 2.0**-126, 2.0**-127, 1e30, 2.0**127, 3.4e38, 1e39, float("inf"), float("-inf"))
ODD_NUMBERS = (*NUMBERS, float("nan"), 10**400, True, "1", b"1", torch.tensor(1.0), [1.0])
WRITTEN = {
    "append_kv": ("k_cache", "v_cache", "k_host_cache", "v_host_cache"),
    "prefill": ("out", "lse"),
    "decode": ("out", "lse"),
    "merge_states": (),
    "copy_pages": ("dst", "dst_scale"),
}


@dataclass
class Call:
    op: str
    arguments: dict[str, object]
    done: list[str] = field(default_factory=list)  # what made it odd

    def tensors(self) -> dict[str, Tensor]:
        """Arguments with memory that can be looked at."""
        found = {n: x for n, x in self.arguments.items() if isinstance(x, Tensor) and x.device.type == "cpu"}
        return {n: x for n, x in found.items() if x.layout == torch.strided and not x.is_nested and _has_memory(x)}

    def __str__(self) -> str:
        lines = [f"swa_attn.{self.op}, {', '.join(self.done) or 'as it should be'}"]
        for name, x in self.arguments.items():
            if name not in self.tensors():
                lines.append(f"  {name} = {str(x)[:200]}")
                continue
            kind = str(x.dtype).removeprefix("torch.")
            lines.append(f"  {name}: {kind} {list(x.shape)}, strides {list(x.stride())}, offset {x.storage_offset()}")
            if not x.is_floating_point() and x.numel() < 200:
                lines.append(f"    {x.tolist()}")
        return "\n".join(lines)


def _has_memory(x: Tensor) -> bool:
    return not x._is_zerotensor()


def guarded(x: Tensor, chance: random.Random) -> Tensor:
    """`x` in memory of its own with canaries around it, at any multiple of its element's size."""
    extent = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    before = chance.choice((64, 64, 64 + x.itemsize, 256))
    memory = torch.full((before + (extent + 64) * x.itemsize,), CANARY, dtype=torch.uint8)
    memory = memory[: memory.numel() // x.itemsize * x.itemsize].view(x.dtype)
    return memory.as_strided(x.shape, x.stride(), before // x.itemsize).copy_(x)


def attention_case(chance: random.Random, kernels_only: bool) -> AttentionCase:
    num_kv_heads = chance.choice((1, 1, 2, 3))
    num_seqs = chance.choice((0, 1, 1, 2, 3))
    q_len = chance.randint(1, 8)
    lengths = [chance.choice((0, 1, chance.randint(1, 40), chance.randint(1, 130))) for _ in range(num_seqs)]
    dims = chance.choice(((16, 16), (64, 64), (24, 7), (80, 48), (1, 1), (192, 128)))
    if kernels_only:
        dims = chance.choice(KERNEL_DIMS[:3])
    dtype = chance.choice(FLOATS[1:] if kernels_only else FLOATS)
    return AttentionCase(
        seqs=tuple((q_len, k) for k in lengths),
        window=chance.choice((None, chance.randint(1, 40))),
        page_size=chance.choice((1, 3, 4, 8, 16, 64)),
        num_q_heads=num_kv_heads * chance.choice((1, 2, 3, 8)),
        num_kv_heads=num_kv_heads,
        head_dim=dims[0],
        v_head_dim=dims[1],
        dtype=dtype,
        cache_dtype=chance.choice((None, None, FP8)),
        sinks=chance.random() < 0.3,
        softcap=chance.choice((0.0, 0.0, 5.0)),
        host=chance.choice((0.0, 0.0, 0.5)),
        layout=chance.choice(("nhd", "hnd", "packed", "padded", "skewed")),
        seed=chance.randrange(2**31),
    )


def attention_call(chance: random.Random, kernels_only: bool) -> Call:
    case = attention_case(chance, kernels_only)
    op = chance.choice(("prefill", "decode")) if case.seqs else "prefill"
    if op == "prefill" and case.seqs:
        lengths = [chance.choice((0, 1, k, chance.randint(0, 12))) for _, k in case.seqs]
        case = replace(case, seqs=tuple((q, k) for q, (_, k) in zip(lengths, case.seqs, strict=True)))
    inputs = build(case, tight=chance.random() < 0.5)
    names = ["q", "k_cache", "v_cache", "block_table", "seqlens_k", "cu_seqlens_q"]
    arguments = dict(zip(names, inputs.decode_args if op == "decode" else inputs.prefill_args)) | inputs.options
    if chance.random() < 0.2:
        arguments["window"] = chance.choice(WINDOWS)
    if chance.random() < 0.3:
        del arguments["softmax_scale"]
    if chance.random() < 0.6:
        gap = chance.choice((0, 0, 8, 3))
        q = arguments["q"]
        out = torch.empty(*q.shape[:-1], case.v_head_dim + gap, dtype=case.dtype)[..., : case.v_head_dim]
        arguments |= {"out": out, "lse": torch.empty(q.shape[:-1])}
    return Call(op, arguments)


def append_call(chance: random.Random, dtypes: tuple[torch.dtype, ...]) -> Call:
    pages, page_size, heads = chance.randint(1, 5), chance.choice((1, 3, 8)), chance.randint(1, 3)
    dims = chance.choice(((16, 16), (64, 48), (5, 7), (1, 1)))
    dtype, cache_dtype = chance.choice(dtypes), chance.choice((*dtypes, FP8))
    layout = chance.choice(("nhd", "hnd", "packed", "padded", "skewed"))
    k_cache, v_cache = empty_pool((pages, page_size, heads, dims[0]), dims[1], layout, cache_dtype, 7.0)
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    arguments: dict[str, object] = {"k_cache": k_cache, "v_cache": v_cache}
    if chance.random() < 0.4:
        host = empty_pool((chance.randint(1, 3), page_size, heads, dims[0]), dims[1], "padded", cache_dtype, 7.0)
        arguments |= {"k_host_cache": host[0], "v_host_cache": host[1]}
        pages += host[0].shape[0]
    if cache_dtype == FP8 and chance.random() < 0.7:
        arguments["k_scale"], arguments["v_scale"] = torch.rand(2, pages, heads, generator=generator) + 0.5
    num_tokens = chance.randint(0, min(9, pages * page_size))
    slots = chance.sample(range(pages * page_size), num_tokens)
    slots = [chance.choice((-1, -(2**63), slot, slot, slot)) for slot in slots]
    new = (torch.randn(num_tokens, heads, dim, generator=generator).to(dtype) for dim in dims)
    first = {**dict(zip(("key", "value"), new)), "slot_mapping": torch.tensor(slots, dtype=torch.int64)}
    return Call("append_kv", first | arguments)


def copy_call(chance: random.Random, dtypes: tuple[torch.dtype, ...]) -> Call:
    layers, page_size, heads, dim = (chance.randint(1, n) for n in (3, 5, 3, 20))
    kinds = chance.choice(((a := chance.choice((*dtypes, FP8)), a), (chance.choice(dtypes), FP8)))
    kinds = kinds if chance.random() < 0.5 else kinds[::-1]
    generator = torch.Generator().manual_seed(chance.randrange(2**31))

    def pool(pages: int, dtype: torch.dtype) -> Tensor:
        order = (pages, layers) if (page_major := chance.random() < 0.5) else (layers, pages)
        x = torch.randn(*order, page_size, heads, dim, generator=generator).to(dtype)
        return x.transpose(0, 1) if page_major else x

    sizes = chance.randint(1, 6), chance.randint(1, 6)
    src, dst = (pool(size, kind) for size, kind in zip(sizes, kinds, strict=True))
    targets = chance.sample(range(sizes[1]), chance.randint(0, sizes[1]))
    sources = [chance.choice((-1, chance.randrange(sizes[0]), chance.randrange(sizes[0]))) for _ in targets]
    arguments: dict[str, object] = {"src": src, "dst": dst}
    arguments |= {"src_pages": torch.tensor(sources, dtype=torch.int64)}
    arguments |= {"dst_pages": torch.tensor(targets, dtype=torch.int64)}
    both = kinds == (FP8, FP8) and chance.random() < 0.5
    for name, kind, size in zip(("src_scale", "dst_scale"), kinds, sizes, strict=True):
        if kind == FP8 and (both or kinds[0] != kinds[1]):
            arguments[name] = torch.rand(layers, size, heads, generator=generator) + 0.5
    return Call("copy_pages", arguments)


def merge_call(chance: random.Random, dtypes: tuple[torch.dtype, ...]) -> Call:
    leading = [chance.randint(0 if chance.random() < 0.1 else 1, 4) for _ in range(chance.randint(0, 3))]
    heads, dim, dtype = chance.randint(1, 5), chance.choice((1, 7, 16, 64)), chance.choice(dtypes)
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    arguments: dict[str, object] = {}
    for side in "ab":
        out = torch.randn(*leading, heads, dim, generator=generator).to(dtype)
        lse = torch.randn(*leading, heads, generator=generator) * chance.choice((1, 5, 100))
        empty = torch.rand(lse.shape, generator=generator) < 0.2
        lse[empty] = chance.choice((float("inf"), float("-inf")))
        out[empty] = float("nan")
        if chance.random() < 0.3:
            out, lse = out.mT.contiguous().mT, lse.movedim(-1, 0).contiguous().movedim(0, -1)
        arguments |= {f"out_{side}": out, f"lse_{side}": lse}
    if chance.random() < 0.4:
        arguments["sinks"] = torch.randn(heads, generator=generator)
    return Call("merge_states", arguments)


def _odd_integers(x: Tensor, chance: random.Random) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    last = torch.iinfo(x.dtype).max
    for _ in range(chance.randint(1, 3)):
        if x.numel():
            values = (0, 1, -1, 2, 5, 12, 13, 40, 100, 2**24, 2**31 - 1, -(2**31), last, -last - 1)
            x.view(-1)[chance.randrange(x.numel())] = chance.choice(values)
    return x


def _odd_tensor(x: Tensor, others: list[Tensor], chance: random.Random) -> tuple[str, object]:
    """Something else in the place of x."""
    changes = {
        "None": lambda: None,
        "a list": lambda: x.tolist() if x.numel() < 100 else [],
        "an array": lambda: x.float().numpy(),
        "another dtype": lambda: x.to(
            chance.choice((*FLOATS, FP8, torch.float64, torch.int32, torch.int64, torch.bool))
        ),
        "fewer": lambda: x[: max(0, x.shape[0] - 1)],
        "nothing of it": lambda: x.narrow(chance.randrange(x.dim()), 0, 0),
        "more": lambda: torch.cat([x, x], chance.randrange(x.dim())),
        "a dimension more": lambda: x.unsqueeze(chance.randint(0, x.dim())),
        "a dimension less": lambda: x.select(chance.randrange(x.dim()), 0),
        "dimensions swapped": lambda: x.transpose(chance.randrange(x.dim()), chance.randrange(x.dim())),
        "other strides": lambda: x.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": lambda: x.narrow(chance.randrange(x.dim()), 0, 1).expand(x.shape),
        "every second": lambda: torch.stack([x, x], -1)[..., 0],
        "sparse": lambda: x.to_sparse(),
        "on no device": lambda: x.to("meta"),
        "zeros without memory": lambda: torch._efficientzerotensor(x.shape, dtype=x.dtype),
        "negated": lambda: torch._neg_view(x),
        "a scalar": lambda: torch.zeros((), dtype=x.dtype),
        "with a gradient": lambda: x.detach().clone().requires_grad_(),
        "a parameter": lambda: torch.nn.Parameter(x.clone(), requires_grad=False),
        "in another's memory": lambda: _inside(chance.choice(others), x),
    }
    name = chance.choice(list(changes))
    try:
        return name, changes[name]()
    except (RuntimeError, TypeError, ValueError, IndexError):  # there is no such thing of this x
        return "itself", x


def _inside(other: Tensor, x: Tensor) -> Tensor:
    """A tensor like x in the memory of another."""
    memory = torch.empty(0, dtype=torch.uint8).set_(other.untyped_storage())
    typed = memory[: memory.numel() // x.itemsize * x.itemsize].view(x.dtype)
    return typed[: x.numel()].view(x.shape)


def make_odd(call: Call, chance: random.Random) -> None:
    tensors = call.tensors()
    integers = [name for name, x in tensors.items() if x.dtype in (torch.int32, torch.int64)]
    kind = chance.choice(("values", "values", "tensor", "tensor", "option"))
    if kind == "values" and integers:
        name = chance.choice(integers)
        call.arguments[name] = _odd_integers(tensors[name], chance)
        call.done.append(f"{name} with other values")
    elif kind == "tensor":
        name = chance.choice(list(tensors))
        others = [x for other, x in tensors.items() if other != name]
        what, call.arguments[name] = _odd_tensor(tensors[name], others, chance)
        call.done.append(f"{name}: {what}")
    elif call.op in ("prefill", "decode"):
        name = chance.choice(("window", "softmax_scale", "softcap"))
        choices = (*WINDOWS, *ODD_WINDOWS) if name == "window" else ODD_NUMBERS
        call.arguments[name] = chance.choice(choices)
        call.done.append(f"{name} of another value")


def make_call(seed: str, backend: str) -> Call:
    chance = random.Random(seed)
    kernels_only = backend == "emulated" and chance.random() < 0.9
    kind = chance.choice(("attention", "attention", "attention", "append", "copy", "merge"))
    call = {
        "attention": lambda: attention_call(chance, kernels_only),
        "append": lambda: append_call(chance, FLOATS),
        "copy": lambda: copy_call(chance, FLOATS),
        "merge": lambda: merge_call(chance, FLOATS),
    }[kind]()
    packed = call.arguments.get("k_cache"), call.arguments.get("v_cache")
    apart = packed[0] is None or packed[0].untyped_storage().data_ptr() != packed[1].untyped_storage().data_ptr()
    for name, x in call.tensors().items():
        if (apart or name not in ("k_cache", "v_cache")) and chance.random() < 0.7:
            call.arguments[name] = guarded(x, chance)
    for _ in range(chance.choice((0, 0, 1, 1, 1, 2))):
        make_odd(call, chance)
    return call
