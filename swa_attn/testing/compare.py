"""The oracle in float64, and comparison with it inside a bound that is computed for every element."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends, reference
from .bounds import Bounds, attention_bounds
from .card import OnCard
from .cases import Inputs
from .roundings import Roundings, roundings_of


@dataclass
class Tightness:
    """The largest errors of some results, in units of their bounds."""

    out: float = 0.0
    lse: float = 0.0
    results: int = 0


seen: defaultdict[str, Tightness] = defaultdict(Tightness)  # per backend, of every comparison in this process


def oracle(inputs: Inputs, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The reference's out and lse of a case, computed in `dtype`."""
    options = dict(inputs.options)
    window = options.pop("window")
    return reference.prefill(
        *inputs.prefill_args, window=-1 if window is None else window, **options, compute_dtype=dtype
    )


def ran(inputs: Inputs) -> str:
    """The backend that runs prefill on these inputs now; one on a card by the name of its kernels."""
    numbers = inputs.options["softmax_scale"], inputs.options.get("softcap", 0.0)
    name = backends.choose_name(
        "prefill", inputs.q, inputs.k_cache, inputs.v_cache.shape[3], inputs.block_table, *numbers
    )
    module = backends.load(name)
    return module.name if isinstance(module, OnCard) else name


def assert_close_to_oracle(
    inputs: Inputs, out: Tensor, lse: Tensor, *, backend: str | None = None, roundings: Roundings | None = None
) -> None:
    """Every element within its own bound of the oracle's; the message shows the first wrong ones.

    `backend` says whose roundings to allow: by default those of the backend that runs such calls here and now.
    """
    backend = backend or ran(inputs)
    roundings = roundings or roundings_of(backend, inputs.q.dtype, inputs.k_cache.dtype)
    bounds = attention_bounds(*inputs.prefill_args, **inputs.options, roundings=roundings)
    remember(backend, assert_within(bounds, oracle(inputs), (out, lse), f"{inputs.case} on {backend}"))


def assert_within(bounds: Bounds, exact: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor], what: str) -> Tightness:
    """Compare out and lse with the exact ones, `what` naming them in the message."""
    shares = []
    for name, mine, expected, allowed in zip(("out", "lse"), got, exact, (bounds.out, bounds.lse), strict=True):
        mine = mine.reshape(expected.shape).double()
        error = (mine - expected).abs()
        same = (mine == expected) | (error <= allowed) | allowed.isinf()  # -inf equals -inf; NaN equals no bound
        if not same.all():
            wrong = (~same).nonzero()
            lines = [
                f"  {tuple(i)}: got {mine[tuple(i)]}, expected {expected[tuple(i)]} +- {allowed[tuple(i)]:.3g}"
                for i in wrong[:5].tolist()
            ]
            raise AssertionError(
                f"{name} of {what}: {len(wrong)} of {same.numel()} elements are outside their bounds\n"
                + "\n".join(lines)
            )
        share = torch.where((allowed > 0) & torch.isfinite(error), error / allowed, 0.0)
        shares.append(share.max().item() if share.numel() else 0.0)
    return Tightness(*shares, results=got[0].numel())


def remember(backend: str, tightness: Tightness) -> None:
    """For the report at the end of the tests."""
    so_far = seen[backend]
    seen[backend] = Tightness(
        max(so_far.out, tightness.out), max(so_far.lse, tightness.lse), so_far.results + tightness.results
    )
