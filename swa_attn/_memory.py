"""Which strided tensors share memory: what an op writes may be neither one of its inputs nor twice the same.

Exact: K and V packed in one tensor have ranges of memory that intersect and no element in common. It is decided once
per layout, or pair of layouts, and remembered.
"""

import functools
import math
from collections.abc import Iterable, Sequence

from torch import Tensor

_STEPS = 20_000  # after which a layout counts as overlapping; the layouts of real pools take a few dozen

Term = tuple[int, int, int]  # a stride, and the least and the largest number of steps along it


def _reaches(terms: Sequence[Term], target: int) -> bool:
    """Whether the steps can add up to `target`. Positive strides, the longest first."""
    least, most = [0], [0]  # what the terms from i on can add up to
    for stride, low, high in reversed(terms):
        least.append(least[-1] + stride * low)
        most.append(most[-1] + stride * high)
    least.reverse()
    most.reverse()
    steps = 0

    def search(i: int, target: int) -> bool:
        nonlocal steps
        steps += 1
        if i == len(terms) or steps > _STEPS:
            return target == 0 or steps > _STEPS
        stride, low, high = terms[i]
        first = max(low, -((most[i + 1] - target) // stride))
        last = min(high, (target - least[i + 1]) // stride)
        return any(search(i + 1, target - stride * x) for x in range(first, last + 1))

    return search(0, target)


def _terms(*layouts: tuple[Iterable[int], Iterable[int], int]) -> list[Term]:
    """One term per stride, the longest first, of `(sizes, strides, sign)`."""
    bounds: dict[int, tuple[int, int]] = {}
    for sizes, strides, sign in layouts:
        for size, stride in zip(sizes, strides, strict=True):
            low, high = bounds.get(stride, (0, 0))
            bounds[stride] = (low, high + size - 1) if sign > 0 else (low - size + 1, high)
    bounds.pop(0, None)
    return [(stride, *bounds[stride]) for stride in sorted(bounds, reverse=True)]


@functools.lru_cache(maxsize=4096)
def _repeats(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two indices into one tensor name the same element."""
    dims = sorted(((stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1), reverse=True)
    if any(stride == 0 for stride, _ in dims):
        return math.prod(sizes) > 0
    for i, (stride, size) in enumerate(dims):  # the indices differ by at least one step along i, and first along i
        rest = [(s, 1 - n, n - 1) for s, n in dims[i + 1 :]]
        if stride <= sum(s * most for s, _, most in rest) and _reaches([(stride, 1, size - 1), *rest], 0):
            return math.prod(sizes) > 0
    return False


@functools.lru_cache(maxsize=4096)
def _meet(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    other_sizes: tuple[int, ...],
    other_strides: tuple[int, ...],
    other_itemsize: int,
    distance: int,
) -> bool:
    """Whether two tensors have a byte in common, the other one starting `distance` bytes further."""
    unit = math.gcd(itemsize, other_itemsize, distance)
    mine = (*sizes, itemsize // unit), (*(s * itemsize // unit for s in strides), 1), 1
    theirs = (*other_sizes, other_itemsize // unit), (*(s * other_itemsize // unit for s in other_strides), 1), -1
    return _reaches(_terms(mine, theirs), distance // unit)


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of `x` share memory, as in an expanded tensor."""
    return not x.is_contiguous() and _repeats(tuple(x.shape), x.stride())


def overlap(x: Tensor, other: Tensor) -> bool:
    """Whether an element of `x` shares memory with one of `other`."""
    if x.numel() == 0 or other.numel() == 0 or x.device != other.device:
        return False
    layouts = tuple(x.shape), x.stride(), x.itemsize, tuple(other.shape), other.stride(), other.itemsize
    return _meet(*layouts, other.data_ptr() - x.data_ptr())
