"""Secret keys that arguments carry."""

MIN_SECRET_BYTES, MAX_SECRET_BYTES = 16, 64


def check_secret(name: str, secret: bytes | None) -> bytes:
    """The secret, or b"" for None. Raises TypeError or ValueError, and never shows it."""
    if secret is None:
        return b""
    if not isinstance(secret, bytes):
        raise TypeError(f"{name}: expected bytes or None, got {type(secret).__name__}")
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"{name}: expected {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes, got {len(secret)}")
    return secret
