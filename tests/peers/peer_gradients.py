"""The backward half of another library's test, which these ops do not have, taken out of it.

Most of their tests compare an output and then its gradients, some the other way round. With gradients that compare as
right to everything, the comparison of the output is reached and decides; the result says that only it was.
"""

import torch
from peer_adapters import OutsideContract

asked = False  # whether the running test asked for gradients
_COMPARED = ("equal", "allclose", "is_close", "assert_close")
_ORDERED = ("le", "lt", "ge", "gt", "__le__", "__lt__", "__ge__", "__gt__", "less_equal", "isclose")


class AnyNumber(float):
    """A number taken out of a gradient: arithmetic gives it back, and every comparison with it holds."""

    def _same(self, *others):
        return self

    def _holds(self, other):
        return True

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = __abs__ = (
        _same
    )
    __le__ = __lt__ = __ge__ = __gt__ = __eq__ = _holds
    __hash__ = float.__hash__


class NotComputed(torch.Tensor):
    """A gradient that nobody computed: zeros of the right shape that every comparison accepts."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = function.__name__
        if name in _COMPARED:
            return True
        result = super().__torch_function__(function, types, args, kwargs or {})
        if name == "item":
            return AnyNumber()
        return torch.ones_like(result) if name in _ORDERED else result


def _grad(outputs, inputs, *args, **options):
    global asked
    asked = True
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return tuple(torch.zeros_like(x).as_subclass(NotComputed) for x in inputs)


def _backward(*args, **options):
    raise OutsideContract("gradients")


def install() -> None:
    """From here on, in this process: no graph is recorded, and `torch.autograd.grad` gives `NotComputed`."""
    torch.set_grad_enabled(False)
    torch.autograd.grad = _grad
    torch.Tensor.backward = torch.autograd.backward = _backward
