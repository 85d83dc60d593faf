"""The reference as a backend: the same functions, writing into given outputs, which rounds their float32 results once."""

from torch import Tensor

from . import _check_values, reference


def lacks(case: object) -> str | None:
    return None


def append_kv(*args: Tensor, **options: Tensor | None) -> None:
    _check_values.append_kv(*args, **options, unique=False)
    reference.append_kv(*args, **options)


def prefill(*args: Tensor, out: Tensor, lse: Tensor, **options: object) -> None:
    _check_values.prefill(*args, **options)
    _store(out, lse, reference.prefill(*args, **options))


def decode(*args: Tensor, out: Tensor, lse: Tensor, **options: object) -> None:
    _check_values.decode(*args, **options)
    _store(out, lse, reference.decode(*args, **options))


def merge_states(*args: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
    _store(out, lse, reference.merge_states(*args, sinks=sinks))


def copy_pages(*args: Tensor, **scales: Tensor | None) -> None:
    _check_values.copy_pages(*args, **scales, unique=False)
    reference.copy_pages(*args, **scales)


def _store(out: Tensor, lse: Tensor, results: tuple[Tensor, Tensor]) -> None:
    out.copy_(results[0])
    lse.copy_(results[1])
