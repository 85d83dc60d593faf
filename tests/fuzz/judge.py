"""What may come of a call: an error that names an argument, or the right answer, and nothing written beside it."""

import re

import torch
from calls import WRITTEN, Call
from torch import Tensor

import swa_attn
from swa_attn import backends, reference
from swa_attn.testing.bounds import attention_bounds, merge_bounds
from swa_attn.testing.roundings import roundings_of

ERRORS = (ValueError, TypeError, NotImplementedError, IndexError)
NAMED = re.compile(r"^swa_attn\.(append_kv|prefill|decode|merge_states|copy_pages)\b")


class WrongError(AssertionError):
    """The call did what no call may do."""


class Memory:
    """All storages of a call's tensors as they were, each once."""

    def __init__(self, call: Call):
        self.call = call
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        for x in call.tensors().values():
            storage = x.untyped_storage()
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before[storage.data_ptr()] = whole, whole.clone()

    def copied(self, x: object) -> object:
        """`x` as it was, in a copy of its memory that it shares with the others that were there."""
        if not isinstance(x, Tensor) or x.untyped_storage().data_ptr() not in self.before:
            return x
        typed = self.before[x.untyped_storage().data_ptr()][1]
        typed = typed[: typed.numel() // x.itemsize * x.itemsize].view(x.dtype)
        return typed.as_strided(x.shape, x.stride(), x.storage_offset())

    def differs(self, where: dict[str, Tensor]) -> str | None:
        """The first byte that is not as it was, outside of the tensors `where`."""
        for address, (now, before) in self.before.items():
            changed = now != before
            for x in where.values():
                if x.untyped_storage().data_ptr() == address and x.numel():
                    inside = torch.zeros(len(now), dtype=torch.bool)
                    strides = (*(stride * x.itemsize for stride in x.stride()), 1)
                    inside.as_strided((*x.shape, x.itemsize), strides, x.storage_offset() * x.itemsize).fill_(True)
                    changed &= ~inside
            if changed.any():
                names = [n for n, x in self.call.tensors().items() if x.untyped_storage().data_ptr() == address]
                return f"byte {int(changed.nonzero()[0])} of the memory of {', '.join(names)}"
        return None


def run(call: Call) -> None:
    """Make the call and judge it; raises WrongError."""
    memory = Memory(call)
    try:
        result = getattr(swa_attn, call.op)(**call.arguments)
    except ERRORS as error:
        if not NAMED.match(str(error)):
            raise WrongError(f"{type(error).__name__} without op and argument: {str(error)[:300]}") from error
        # An attention may find a page that does not exist when it has written some rows.
        may_write = {n: x for n, x in call.tensors().items() if n in ("out", "lse") and isinstance(error, IndexError)}
        if changed := memory.differs(may_write):
            raise WrongError(f"refused ({error}), but wrote to {changed}") from error
        return
    except Exception as error:
        raise WrongError(f"{type(error).__name__}: {str(error)[:500]}") from error
    judge = {"append_kv": judge_stored, "copy_pages": judge_stored, "merge_states": judge_merged}
    judge.get(call.op, judge_attention)(call, memory, result)


def judge_stored(call: Call, memory: Memory, _: None) -> None:
    """The reference does the same to a copy of all memory; then every byte must agree."""
    expected = {name: memory.copied(x) for name, x in call.arguments.items()}
    try:
        getattr(reference, call.op)(**expected)
    except Exception as error:
        raise WrongError(f"accepted what the reference refuses: {type(error).__name__}: {error}") from error
    if changed := memory.differs({}):  # by now `before` holds what the reference made of it
        raise WrongError(f"differs from the reference in {changed}")


def judge_merged(call: Call, memory: Memory, result: tuple[Tensor, Tensor]) -> None:
    if changed := memory.differs({}):
        raise WrongError(f"wrote to {changed}")
    given = {n: x for n, x in call.arguments.items() if x is not None}
    exact = reference.merge_states(**{n: x.double() if n.startswith("out") else x for n, x in given.items()})
    parts = (given[name] for name in ("out_a", "lse_a", "out_b", "lse_b"))
    bounds = merge_bounds(*parts, given.get("sinks"), given["out_a"].dtype)
    compare("out", result[0], exact[0], bounds.out)
    compare("lse", result[1], exact[1], bounds.lse)


def judge_attention(call: Call, memory: Memory, result: tuple[Tensor, Tensor]) -> None:
    written = {name: x for name, x in call.tensors().items() if name in WRITTEN[call.op]}
    if changed := memory.differs(written):
        raise WrongError(f"wrote to {changed}")
    options = {n: x for n, x in call.arguments.items() if n not in ("out", "lse") and x is not None}
    q, k_cache = options["q"], options["k_cache"]
    scale = options.setdefault("softmax_scale", q.shape[-1] ** -0.5)
    options["window"] = int(options.get("window", -1))
    rows = q.shape[0] if call.op == "decode" else int(options["cu_seqlens_q"][-1])
    try:
        exact = getattr(reference, call.op)(**options, compute_dtype=torch.float64)
    except Exception as error:
        raise WrongError(f"accepted what the reference refuses: {type(error).__name__}: {error}") from error
    out, lse = result
    products = largest(q) * largest(k_cache, options.get("k_scale"), options.get("k_host_cache")) * q.shape[-1]
    if max(abs(scale), 1.0) * products > torch.finfo(torch.float32).max / 8:
        return  # infinity minus infinity, where float64 has numbers
    numbers = options["block_table"], float(scale), float(options.get("softcap", 0.0))
    backend = backends.choose_name("prefill", q, k_cache, options["v_cache"].shape[3], *numbers)
    if backend == "emulated" and not finite_scales(options):
        return  # docs/conventions.md, Numbers: there such a scale reaches rows that do not see its page
    if call.op == "decode":
        options["cu_seqlens_q"] = torch.arange(len(q) + 1) * q.shape[1]
        options["q"] = q.flatten(0, 1)
        out, lse, *exact = (x.flatten(0, 1) for x in (out, lse, *exact))
        rows = len(out)
    roundings = roundings_of(backend, q.dtype, k_cache.dtype)
    bounds = attention_bounds(**options, roundings=roundings)
    compare("out", out[:rows], exact[0][:rows], bounds.out[:rows])
    compare("lse", lse[:rows], exact[1][:rows], bounds.lse[:rows])


def finite_scales(options: dict[str, object]) -> bool:
    """Whether the scales of all pages that the block table names are numbers."""
    pages = options["block_table"].flatten().long()
    scales = [options[name] for name in ("k_scale", "v_scale") if name in options]
    return all(bool(torch.isfinite(x[pages[(pages >= 0) & (pages < len(x))]]).all()) for x in scales)


def largest(x: Tensor, scale: Tensor | None = None, host: Tensor | None = None) -> float:
    found = [0.0]
    for part in (x, host):
        if part is not None:
            finite = part.double().nan_to_num(0, 0, 0)
            found.append(finite.abs().max().item() if finite.numel() else 0.0)
    factor = 1.0 if scale is None or not scale.numel() else scale.nan_to_num(0, 0, 0).abs().max().item()
    return max(found) * factor


def compare(name: str, got: Tensor, exact: Tensor, allowed: Tensor) -> None:
    """Each element within its bound (docs/numerics.md). Where the exact value is finite, or infinite, so is `got`; NaN is
    what comes of NaN that a query sees."""
    if got.shape != exact.shape:
        raise WrongError(f"{name} has shape {list(got.shape)}, expected {list(exact.shape)}")
    got = got.double()
    range_of_type = torch.finfo(torch.float32).max
    right = (
        (got == exact)
        | ((got - exact).abs() <= allowed)
        | allowed.isinf()
        | exact.isnan()
        | (exact.abs() > range_of_type / 4)
    )
    if not right.all():
        at = tuple((~right).nonzero()[0].tolist())
        raise WrongError(f"{name}[{at}] is {got[at].item()}, expected {exact[at].item()} within {allowed[at]:.3g}")
