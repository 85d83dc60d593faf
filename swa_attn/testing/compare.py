"""The oracle in float64, and a tolerance that comes from plain PyTorch in the same precision instead of a guess."""

import torch
from torch import Tensor

from .. import reference
from .cases import Inputs


def oracle(inputs: Inputs, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The reference's out and lse of a case, computed in `dtype`."""
    options = dict(inputs.options)
    window = options.pop("window")
    return reference.prefill(
        *inputs.prefill_args, window=-1 if window is None else window, **options, compute_dtype=dtype
    )


def allowed_error(exact: Tensor, same_precision: Tensor) -> float:
    """Twice the largest error of PyTorch computing in the same precision, plus two roundings of the largest result."""
    dtype = same_precision.dtype
    finite = torch.isfinite(exact)
    error = (same_precision.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    return 2 * error + 2 * torch.finfo(dtype).eps * _largest(exact)


def _largest(x: Tensor) -> float:
    """The largest finite magnitude, 0 if there is none."""
    finite = x[torch.isfinite(x)]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_close_to_oracle(inputs: Inputs, out: Tensor, lse: Tensor) -> None:
    """Compare with the oracle; the message shows the first wrong elements and both values."""
    exact = oracle(inputs)
    rough = oracle(inputs, inputs.q.dtype)
    # A peaked row's lse is its largest score. Its rounding to float32 may not show in the few rows of `rough`.
    score_rounding = torch.finfo(torch.float32).eps * _largest(exact[1])
    for name, got, expected, approximate in zip(("out", "lse"), (out, lse), exact, rough, strict=True):
        got = got.reshape(expected.shape).double()
        tolerance = allowed_error(expected, approximate) + score_rounding * (_largest(expected) if name == "out" else 1)
        same = (got == expected) | ((got - expected).abs() <= tolerance)  # -inf equals -inf; NaN equals nothing
        if not same.all():
            wrong = (~same).nonzero()
            lines = [f"  {tuple(i)}: got {got[tuple(i)]}, expected {expected[tuple(i)]}" for i in wrong[:5].tolist()]
            raise AssertionError(
                f"{name} of {inputs.case}: {len(wrong)} of {same.numel()} elements are off by more than "
                f"{tolerance:.3g}\n" + "\n".join(lines)
            )
