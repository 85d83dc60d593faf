"""Names of cached pages: a chain of digests, so that a page's name stands for every token up to its end.

All are BLAKE2b of 248 bits. Two different beginnings with one name, which would serve one prompt the KV of another, take
2^124 attempts to find. A secret `key` makes the names of one deployment unknown to everybody else: who reads them, in a
store for instance, can then not even try out which prompts they stand for. docs/kvcache.md has the whole story.
"""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from operator import index

import torch

from .encoding import encode, text
from .spec import GroupSpec

DIGEST_BYTES = 31  # and a group's number in front make the longest key of a store


def namespace_digest(
    fingerprint: str,
    groups: Sequence[GroupSpec],
    page_size: int,
    dtype: torch.dtype,
    salt: str = "",
    *,
    lower_dtype: torch.dtype | None = None,
    key: bytes = b"",
) -> bytes:
    """The parent of every first page. Pages match only within one namespace.

    `fingerprint` names whatever decides the contents of K and V: weights, value scale, rotary settings. The layout of
    the pages is added here, and `salt` separates tenants that must not see each other's prefixes. Both are taken by
    their characters, whatever these are. Raises TypeError for one that is no str.
    """
    layout = layout_digest(groups, page_size, dtype, lower_dtype)
    return _digest(b"swa namespace", encode(text("fingerprint", fingerprint), layout, text("salt", salt)), key)


def layout_digest(
    groups: Sequence[GroupSpec], page_size: int, dtype: torch.dtype, lower_dtype: torch.dtype | None = None
) -> bytes:
    """Names how pages look: layers, heads, windows, page size, dtypes."""
    layout = tuple(_group_fields(g) for g in sorted(groups, key=lambda g: g.name))
    return _digest(b"swa layout", encode(layout, _int(page_size), str(dtype), str(lower_dtype or dtype)))


def _group_fields(group: GroupSpec) -> tuple:
    layers = array("q", group.layers).tobytes()
    sizes = _int(group.num_kv_heads), _int(group.head_dim), _int(group.v_head_dim)
    return text("group", group.name), layers, *sizes, None if group.window is None else _int(group.window)


def _int(value: int) -> int:
    """Also NumPy's and others' integers."""
    return int(index(value))


def page_digest(parent: bytes, tokens: Sequence[int], key: bytes = b"") -> bytes:
    """The name of a full page of `tokens` that follows the page named `parent`."""
    return _digest(b"swa page", parent + token_ids(tokens).tobytes(), key)


def chain_digests(parent: bytes, tokens: Sequence[int], page_size: int, key: bytes = b"") -> Iterator[bytes]:
    """The names of all full pages of `tokens`, in order."""
    ids = token_ids(tokens).tobytes()
    size = 8 * page_size
    for start in range(0, len(ids) - size + 1, size):
        parent = _digest(b"swa page", parent + ids[start : start + size], key)
        yield parent


def token_ids(tokens: Sequence[int]) -> "array[int]":
    """64 bits for each, by value: from bytes too, which `array` by itself takes for the memory of another array."""
    return array("q", tokens if isinstance(tokens, list | tuple) else list(tokens))


def _digest(purpose: bytes, data: bytes, key: bytes = b"") -> bytes:
    """A digest for one purpose is none for another, even with the same key."""
    return blake2b(data, digest_size=DIGEST_BYTES, key=key, person=purpose).digest()
