"""Bytes as tokens: token i < 256 is the byte i; anything above is special and decodes to nothing. No file is read."""

import codecs
from collections.abc import Iterable


class ByteTokenizer:
    NUM_BYTES = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of the text in UTF-8.

        Raises:
            TypeError: it is not a str.
            ValueError: it holds half of a surrogate pair, which no UTF-8 has; the message says where.
        """
        if not isinstance(text, str):
            raise TypeError(f"ByteTokenizer.encode: text must be a str, got {type(text).__name__}")
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"ByteTokenizer.encode: text must be encodable as UTF-8, got {text[error.start]!r} at {error.start}"
            ) from None

    def decode(self, tokens: Iterable[int]) -> str:
        """What the tokens say; bytes that are not UTF-8 become U+FFFD. Raises ValueError for what is not a token."""
        return b"".join(map(_as_byte, tokens)).decode(errors="replace")


class ByteStream:
    """Text of a token stream as it arrives: a character appears when its last byte has."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The characters that this token completes. Raises ValueError for what is not a token."""
        return self._decoder.decode(_as_byte(token))


def _as_byte(token: int) -> bytes:
    """The byte that a token is, or none."""
    if isinstance(token, bool) or not hasattr(token, "__index__") or token < 0:
        raise ValueError(f"a token must be an integer of at least 0, got {token!r}")
    return bytes([token]) if token < ByteTokenizer.NUM_BYTES else b""
