"""Who wrote it: message authentication codes, where a key is configured."""

import hmac
from collections.abc import Iterable

from .buffers import Bytes

MAC_BYTES = 32
NO_MAC = bytes(MAC_BYTES)


def sign(key: bytes, purpose: bytes, views: Iterable[Bytes | bytes]) -> bytes:
    """HMAC-SHA-256 of the concatenation, for one purpose; NO_MAC without a key."""
    if not key:
        return NO_MAC
    state = hmac.new(key, purpose, "sha256")
    for view in views:
        state.update(view)
    return state.digest()


def signed(key: bytes, purpose: bytes, views: Iterable[Bytes | bytes], mac: bytes) -> bool:
    """Whether someone with the key made the code. Without a key nobody is asked. Takes the same time wherever it differs."""
    return not key or hmac.compare_digest(sign(key, purpose, views), mac)
