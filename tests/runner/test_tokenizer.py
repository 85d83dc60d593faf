"""Bytes as tokens: every text comes back, and what is no text or no token is named."""

import pytest

from swa_attn.runner.tokenizer import ByteStream, ByteTokenizer

TEXTS = ["", "a", "\0", "naïve", "€𝄞", "\U0010ffff", "a\r\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_whole_and_as_a_stream(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens == list(text.encode())
    assert ByteTokenizer().decode([*tokens, 256, 10**12]) == text
    stream = ByteStream()
    assert "".join(map(stream.feed, [*tokens, 256])) == text


def test_bytes_that_are_not_utf8():
    assert ByteTokenizer().decode([0x61, 0xFF, 0xE2, 0x82]) == "a\ufffd\ufffd"
    stream = ByteStream()
    assert [stream.feed(t) for t in (0xE2, 0x82, 0x61)] == ["", "", "\ufffda"]


@pytest.mark.parametrize("token", [-1, 1.0, "a", None, True, b"a"], ids=repr)
def test_what_is_no_token(token):
    for decode in (lambda t: ByteTokenizer().decode([t]), ByteStream().feed):
        with pytest.raises(ValueError, match="a token must be an integer of at least 0, got "):
            decode(token)


def test_what_is_no_text():
    with pytest.raises(ValueError, match=r"text must be encodable as UTF-8, got '\\ud800' at 2"):
        ByteTokenizer().encode("ab\ud800")
    for value in (b"a", None, 1, ["a"]):
        with pytest.raises(TypeError, match="text must be a str, got"):
            ByteTokenizer().encode(value)
