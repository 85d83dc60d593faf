"""Which model this is: a digest of its configuration and of every weight, for caches that outlive it or are shared."""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from hashlib import sha256
from itertools import islice

import torch
from torch import Tensor, nn

from ..kvcache import LowerTiers
from ..kvcache.encoding import encode

_PIECE_BYTES = 32 << 20  # hashed by one thread at a time
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)  # subclasses may keep their bytes elsewhere


def default_fingerprint(model: object, lower: LowerTiers | None) -> str:
    """What an engine that was given no fingerprint uses: the model's above a store, and none where pages end with it."""
    return "" if lower is None or lower.store is None else model_fingerprint(model)


def model_fingerprint(model: object, *, threads: int | None = None) -> str:
    """A digest of the model's class, its `config`, and the name, dtype, shape and bytes of every parameter and buffer.

    Models with one fingerprint compute the same K and V, up to what the machine and the backend round differently. The
    price is one pass over the weights, SHA-256 in `threads` (None: one per core); docs/kv_tiers.md says what it takes.

    Args:
        model: a module whose `config` is a dataclass, a mapping, or an object with `to_dict`, as transformers' are.

    Raises:
        ValueError: something of that is missing or cannot be read, so that the model needs a fingerprint by hand.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise _no_fingerprint(model, "it has no config")
    try:
        described = encode(type(model).__module__, type(model).__qualname__, config_fields(config))
    except TypeError as error:
        raise _no_fingerprint(model, f"its config cannot be named: {error}") from error
    tensors = dict(_tensors(model))
    if not tensors:
        raise _no_fingerprint(model, "it has no parameters")
    for name, x in tensors.items():
        if type(x) not in _PLAIN or x.layout is not torch.strided or x.is_quantized or x.is_meta:
            raise _no_fingerprint(model, f"{name} is no tensor with bytes of its own: {type(x).__name__} on {x.device}")
    names = tuple((name, str(x.dtype), tuple(x.shape)) for name, x in tensors.items())
    digests = _piece_digests(tensors.values(), threads or os.cpu_count() or 1)
    return sha256(encode("model", described, names, digests)).hexdigest()


def config_fields(value: object) -> object:
    """A configuration as values that `encode` takes. Raises TypeError for what has no such form."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return ("torch", str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping(type(value).__name__, {f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Mapping):
        return _mapping("mapping", value)
    if isinstance(value, list | tuple):
        return ("sequence", *map(config_fields, value))
    if isinstance(value, set | frozenset):
        return ("set", *sorted(encode(config_fields(item)) for item in value))
    if callable(to_dict := getattr(value, "to_dict", None)):
        return _mapping(type(value).__name__, to_dict())
    raise TypeError(f"a {type(value).__name__} is no value of a configuration")


def _mapping(kind: str, value: Mapping) -> tuple:
    items = ((config_fields(key), config_fields(item)) for key, item in value.items())
    return (kind, *sorted(items, key=encode))


def _tensors(model: object) -> Iterator[tuple[str, Tensor]]:
    for kind in ("named_parameters", "named_buffers"):
        yield from getattr(model, kind, dict)()


def _piece_digests(tensors: Iterable[Tensor], threads: int) -> tuple[bytes, ...]:
    """Of all pieces in order. Some at a time, since a piece may be a copy."""
    pieces, digests = (piece for x in tensors for piece in _pieces(x)), []
    with ThreadPoolExecutor(threads, thread_name_prefix="swa-fingerprint") as pool:
        while some := list(islice(pieces, 4 * threads)):
            digests += pool.map(_piece_digest, some)
    return tuple(digests)


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """The elements in order, uint8."""
    flat = x.detach().reshape(-1)
    step = _PIECE_BYTES // x.element_size()
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].contiguous().view(torch.uint8)


def _piece_digest(piece: Tensor) -> bytes:
    return sha256(memoryview(piece.cpu().numpy())).digest()


def _no_fingerprint(model: object, why: str) -> ValueError:
    return ValueError(
        f"Engine: give fingerprint= to use a store with {type(model).__name__}, which cannot be named by its weights: {why}"
    )
