"""Names of cached KV: what differs has another name, whatever it is made of."""

import itertools
import struct
from array import array
from enum import Enum

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swa_attn.kvcache import GroupSpec, KVCache, LowerTiers
from swa_attn.kvcache.encoding import encode
from swa_attn.kvcache.hashing import DIGEST_BYTES, chain_digests, layout_digest, namespace_digest, page_digest
from swa_attn.kvcache.store.base import MAX_KEY_BYTES
from swa_attn.kvcache.store_mover import _store_key

FULL, SWA = GroupSpec("full", (0, 2), 2, 16, 8), GroupSpec("swa", (1, 3), 4, 16, 8, 9)
SECRETS = st.one_of(st.none(), st.binary(min_size=16, max_size=64))
TEXTS = st.text(st.characters(), max_size=12)  # every code point, surrogates and NUL among them
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=12))
FIELDS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


def decoded(data: bytes) -> tuple:
    """The values again."""
    values = []
    while data:
        letter, (length,) = data[:1], struct.unpack(">Q", data[1:9])
        content, data = data[9 : 9 + length], data[9 + length :]
        assert len(content) == length
        values.append(
            {
                b"n": lambda c: None,
                b"b": lambda c: c == b"\1",
                b"i": lambda c: int.from_bytes(c, "big", signed=True),
                b"f": lambda c: struct.unpack(">d", c)[0],
                b"s": lambda c: c.decode("utf-8", "surrogatepass"),
                b"y": bytes,
                b"t": decoded,
            }[letter](content)
        )
    return tuple(values)


def shown(values: tuple) -> str:
    """A form that tells 0.0 from -0.0, 1 from True, and takes NaN for NaN."""
    return repr(values)


@given(st.lists(FIELDS, max_size=5).map(tuple))
def test_what_is_encoded_can_be_read_back(values):
    again = decoded(encode(*values))
    assert shown(again) == shown(values) and encode(*again) == encode(*values)


@given(st.lists(FIELDS, max_size=4).map(tuple), st.lists(FIELDS, max_size=4).map(tuple))
def test_different_values_have_different_bytes(a, b):
    assert (encode(*a) == encode(*b)) == (shown(a) == shown(b))


class Odd(str):
    """Says of itself what it is not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'b'"

    def __str__(self) -> str:
        return "b"

    def encode(self, *_) -> bytes:
        return b"b"

    def __eq__(self, other) -> bool:
        return True

    __hash__ = str.__hash__


@pytest.mark.parametrize("value", [Odd("a"), np.int64(1), [1], {}, object(), 1j])
def test_other_types_are_no_fields(value):
    with pytest.raises(TypeError, match=rf"encode: expected one of .*, got {type(value).__name__}"):
        encode("x", (1, value))


def name(fingerprint="model", salt="", key=b"", **changed) -> bytes:
    return namespace_digest(fingerprint, (FULL, SWA), 16, torch.bfloat16, salt, key=key, **changed)


AWKWARD = [
    "",
    "a",
    "b",
    "ab",
    "a\0",
    "\0a",
    "a\0b",
    "'b'",
    "\ud800",
    "\udc00",
    "\ud83d\ude00",
    "😀",
    "é",
    "e\u0301",
    "b'a'",
]


def test_no_two_salts_and_fingerprints_share_a_name():
    pairs = list(itertools.product(AWKWARD, AWKWARD))
    assert len({name(f, s) for f, s in pairs}) == len(pairs)


@given(st.tuples(TEXTS, TEXTS), st.tuples(TEXTS, TEXTS))
def test_names_are_equal_only_for_equal_parts(a, b):
    assert (name(*a) == name(*b)) == (a == b)


def test_a_salt_is_its_characters_and_nothing_that_it_says_of_itself():
    class Tenant(str, Enum):
        A = "a"

    assert name(salt=Odd("a")) == name(salt=Tenant.A) == name(salt="a") != name(salt="b")
    assert name(fingerprint=Odd("a")) == name(fingerprint="a") != name(fingerprint="b")


@pytest.mark.parametrize("salt", [None, b"a", 1, ("a",), object()])
def test_what_is_no_str_is_no_salt(salt):
    cache = KVCache((FULL,), 4, {"full": 2}, torch.float32, "cpu", "")
    with pytest.raises(TypeError, match=f"salt: expected a str, got {type(salt).__name__}"):
        cache.key([1, 2, 3], salt)


def test_every_part_of_the_layout_counts():
    layouts = [
        ((FULL, SWA), 16, torch.bfloat16, None),
        ((FULL,), 16, torch.bfloat16, None),
        ((FULL, SWA), 8, torch.bfloat16, None),
        ((FULL, SWA), 16, torch.float16, None),
        ((FULL, SWA), 16, torch.bfloat16, torch.float8_e4m3fn),
    ]
    fields = {"name": "other", "layers": (4, 5), "num_kv_heads": 8, "head_dim": 8, "v_head_dim": 16, "window": 10}
    for field, value in fields.items():
        changed = GroupSpec(**{**vars(SWA), field: value})
        layouts.append(((FULL, changed), 16, torch.bfloat16, None))
    digests = [layout_digest(*layout) for layout in layouts]
    assert len(set(digests)) == len(digests)
    assert layout_digest((SWA, FULL), 16, torch.bfloat16, torch.bfloat16) == digests[0], (
        "order and the same dtype below"
    )
    of_numpy = GroupSpec("swa", (np.int64(1), np.int32(3)), np.int64(4), 16, 8, np.int64(9))
    assert layout_digest((FULL, of_numpy), np.int64(16), torch.bfloat16) == digests[0]
    assert name(lower_dtype=torch.float8_e4m3fn) != name()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.integers(1, 9), SECRETS)
def test_a_chain_is_its_pages_one_by_one(tokens, page_size, key):
    key, parent, names = key or b"", b"p" * DIGEST_BYTES, []
    for start in range(0, len(tokens) // page_size * page_size, page_size):
        names.append(parent := page_digest(parent, tokens[start : start + page_size], key))
    assert list(chain_digests(b"p" * DIGEST_BYTES, tokens, page_size, key)) == names


def test_tokens_are_named_by_value_in_whatever_they_come():
    tokens = list(b"sixteen tokens!!")
    forms = [tuple(tokens), bytes(tokens), bytearray(tokens), np.array(tokens, np.int32), array("q", tokens)]
    for form in [*forms, array("B", tokens), torch.tensor(tokens)]:
        assert list(chain_digests(b"p", form, 8)) == list(chain_digests(b"p", tokens, 8)), type(form)
    for form in ("sixteen tokens!!", [1.0] * 16, np.ones(16)):
        with pytest.raises(TypeError):
            list(chain_digests(b"p", form, 8))
    with pytest.raises(OverflowError):
        page_digest(b"p", [2**63])


def test_names_are_wide_enough_that_nobody_finds_two_alike():
    assert 8 * DIGEST_BYTES // 2 >= 120, "attempts to a collision, as a power of two"
    assert len(_store_key(255, name())) <= MAX_KEY_BYTES
    key = KVCache((FULL,), 4, {"full": 2}, torch.float32, "cpu", "").key(range(8))
    assert {len(digest) for digest in (key.namespace, *key.digests)} == {DIGEST_BYTES}


def test_a_secret_key_changes_every_name():
    caches = [
        KVCache((FULL,), 4, {"full": 2}, torch.float32, "cpu", "m", hash_key=k) for k in (None, b"1" * 16, b"2" * 16)
    ]
    keys = [cache.key(range(12)) for cache in caches]
    names = [digest for key in keys for digest in (key.namespace, *key.digests)]
    assert len(set(names)) == len(names) == 12
    # Each page by itself: who reads one name cannot go on from it.
    parent, tokens = keys[1].digests[0], range(4, 8)
    assert page_digest(parent, tokens, b"1" * 16) == keys[1].digests[1] != page_digest(parent, tokens)


def test_generated_pages_are_named_as_in_a_prompt():
    cache = KVCache((FULL,), 4, {"full": 8}, torch.float32, "cpu", "m", hash_key=b"k" * 32)
    sequence = cache.begin(cache.key(range(5)))
    assert cache.extend(sequence, 5)
    cache.commit(sequence, range(5))
    assert cache.extend(sequence, 7)
    cache.commit(sequence, range(5, 12))
    assert sequence.digests == list(cache.key(range(12)).digests)


@pytest.mark.parametrize(
    "key, error", [(b"", ValueError), (b"15 bytes, oh no", ValueError), (bytes(65), ValueError), ("a" * 16, TypeError)]
)
def test_a_bad_secret_is_refused_without_being_shown(key, error):
    with pytest.raises(error, match=r"hash_key: expected (16 to 64 )?bytes") as raised:
        KVCache((FULL,), 4, {"full": 2}, torch.float32, "cpu", "m", hash_key=key)
    assert not key or str(key) not in str(raised.value)


def test_what_was_rounded_below_the_device_has_another_name():
    """A shared store must not give an exact cache the pages of one that keeps float8."""
    names = set()
    for below in (None, torch.float8_e4m3fn):
        with KVCache(
            (FULL,), 4, {"full": 2}, torch.float32, "cpu", "m", lower=LowerTiers({"full": 2}, dtype=below)
        ) as cache:
            names.add(cache.key(range(8)).digests)
    assert len(names) == 2


class NoStore:
    """Nothing of it may be used."""


def test_above_a_store_a_cache_must_have_a_fingerprint():
    def open_cache(fingerprint, **disk):
        lower = LowerTiers({"full": 2}, **disk)
        return KVCache((FULL,), 4, {"full": 2}, torch.float32, "cpu", fingerprint, lower=lower)

    with pytest.raises(ValueError, match="KVCache: fingerprint must name the model above a store"):
        open_cache("", store=NoStore(), disk_bytes=1 << 20)
    open_cache("").close()
    with pytest.raises(TypeError, match="KVCache: fingerprint must be a str, got bytes"):
        open_cache(b"model")
