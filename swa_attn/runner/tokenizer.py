"""Bytes as tokens: token i < 256 is the byte i; anything above is special and decodes to nothing."""

import codecs
from collections.abc import Iterable


class ByteTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode(errors="replace")


class ByteStream:
    """Text of a token stream as it arrives: a character appears when its last byte has."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""
