"""Names of cached pages: a chain of digests, so that a page's name stands for every token up to its end."""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch

from .spec import GroupSpec

DIGEST_BYTES = 16


def namespace_digest(
    fingerprint: str, groups: Sequence[GroupSpec], page_size: int, dtype: torch.dtype, salt: str = ""
) -> bytes:
    """The parent of every first page. Pages match only within one namespace.

    `fingerprint` names whatever decides the contents of K and V: weights, value scale, rotary settings. The layout of
    the pages is added here, and `salt` separates tenants that must not see each other's prefixes.
    """
    layout = layout_digest(groups, page_size, dtype)
    return blake2b(repr((fingerprint, layout, salt)).encode(), digest_size=DIGEST_BYTES).digest()


def layout_digest(
    groups: Sequence[GroupSpec], page_size: int, dtype: torch.dtype, lower_dtype: torch.dtype | None = None
) -> bytes:
    """Names how pages look: layers, heads, windows, page size, dtypes."""
    layout = sorted((g.name, g.layers, g.num_kv_heads, g.head_dim, g.v_head_dim, g.window) for g in groups)
    return blake2b(repr((layout, page_size, str(dtype), str(lower_dtype))).encode(), digest_size=DIGEST_BYTES).digest()


def page_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full page of `tokens` that follows the page named `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def chain_digests(parent: bytes, tokens: Sequence[int], page_size: int) -> Iterator[bytes]:
    """The names of all full pages of `tokens`, in order."""
    for start in range(0, len(tokens) - page_size + 1, page_size):
        parent = page_digest(parent, tokens[start : start + page_size])
        yield parent
