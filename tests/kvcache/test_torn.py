"""A change that an exception cuts short marks the cache, which then refuses by name until it is reset."""

import pytest
from shadow import ENDS_AND_BRANCHES, Shadow, check_invariants, make_cache

from swa_attn.kvcache import Intact, Torn

WINDOWS = {"full": None, "swa": 5}


def make_shadow() -> Shadow:
    return Shadow(make_cache(WINDOWS, 4, {"full": 20, "swa": 20}, policy=ENDS_AND_BRANCHES))


def test_the_mark_is_set_before_and_taken_away_after():
    whole = Intact("Thing", "throw it away")
    with whole:
        assert whole.torn
        with pytest.raises(Torn), whole:
            raise AssertionError("changes do not nest")
    assert not whole.torn
    with pytest.raises(KeyboardInterrupt), whole:
        raise KeyboardInterrupt
    with pytest.raises(Torn, match=r"^Thing: unusable after KeyboardInterrupt\(\) in the middle of a change: throw"):
        whole.check()
    whole.mend()
    with whole:
        pass
    whole.check()


BREAKING = {  # a method, and something that it does on its way
    "begin": "_attach",
    "extend": "_allocate",
    "commit": "_keep_finished",
    "end": "_unpin",
    "poll": "_settle_loads",
    "can_admit": "_give_up_slack",
    "extendable": "_give_up_slack",
}


@pytest.mark.parametrize("method", BREAKING)
def test_a_torn_cache_refuses_every_change_until_it_is_reset(method, monkeypatch):
    shadow = make_shadow()
    cache = shadow.cache
    shadow.run(list(range(15)))
    sequence = shadow.begin(list(range(30)))
    assert sequence.hit_tokens == 12 and cache.extend(sequence, 4)
    key = cache.key(list(range(30)))
    arguments = {
        "begin": [key],
        "extend": [sequence, 8],
        "commit": [sequence, list(range(12, 16))],
        "end": [sequence],
        "poll": [],
        "can_admit": [key],
        "extendable": [sequence],
    }
    monkeypatch.setattr(cache, BREAKING[method], lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        getattr(cache, method)(*arguments[method])
    monkeypatch.undo()
    assert cache.is_torn
    for other, given in arguments.items():
        if other in ("begin", "poll", "can_admit"):
            with pytest.raises(Torn, match=r"KVCache: unusable after ZeroDivisionError.* reset it, or close it"):
                getattr(cache, other)(*given)
    for refused in (cache.clear, lambda: cache.set_fingerprint("x"), lambda: cache.forget(key, 0)):
        with pytest.raises(Torn):
            refused()
    cache.reset()
    check_invariants(cache)
    assert all(pool.num_used == 0 for pool in cache.pools.values())
    with pytest.raises(ValueError, match="the sequence has ended"):
        cache.extend(sequence, 1)
    shadow.tokens.clear()
    shadow.poison_free_pages()
    assert [shadow.run(list(range(15))), shadow.run(list(range(15)))] == [0, 12]
    check_invariants(cache)


def test_wrong_arguments_change_nothing():
    shadow = make_shadow()
    cache = shadow.cache
    sequence = shadow.begin(list(range(10)))
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=f"extend: num_tokens must be at least 1, got {wrong}"):
            cache.extend(sequence, wrong)
    with pytest.raises(ValueError, match="commit: 3 tokens end at 3, beyond the pages from extend"):
        cache.commit(sequence, [0, 1, 2])
    with pytest.raises(TypeError, match="begin: key must be a PrefixKey, got list"):
        cache.begin([1, 2])
    with pytest.raises(ValueError, match="rebuilt: the sequence's plan has no rebuild"):
        cache.rebuilt(sequence)
    for method in (cache.clear, lambda: cache.set_fingerprint("other")):
        with pytest.raises(ValueError, match="1 sequences run; end them first"):
            method()
    sequence.is_loading = True
    with pytest.raises(ValueError, match="commit: the sequence's prefix is not there yet"):
        cache.commit(sequence, [0])
    sequence.is_loading = False
    assert not cache.is_torn and shadow.compute(sequence, 10)
    shadow.end(sequence)
    with pytest.raises(ValueError, match="the sequence has ended"):
        cache.end(sequence)
    check_invariants(cache)


def test_forgetting_keeps_what_comes_before_and_lets_users_go_on():
    shadow = make_shadow()
    cache, tokens = shadow.cache, list(range(24))
    shadow.run(tokens)
    user = shadow.begin([*tokens, 99])
    assert user.hit_tokens == 24
    cache.forget(cache.key(tokens), 9)  # whole pages: from position 8 on
    assert cache.match(cache.key([*tokens, 99])).num_pages == 2
    assert shadow.compute(user, 1)
    shadow.end(user)
    check_invariants(cache)
    assert cache.match(cache.key([*tokens, 99])).num_pages == 2
    assert shadow.run([*tokens, 99]) == 0, "no window is left before the second page's end"
    assert cache.match(cache.key([*tokens, 99])).num_pages == 6
    check_invariants(cache)


def test_a_sequence_that_ends_without_being_kept_leaves_no_snapshot():
    shadow = make_shadow()
    cache, tokens = shadow.cache, list(range(24))
    sequence = shadow.begin(tokens)
    assert shadow.compute(sequence, 8)
    cache.end(sequence, keep=False)
    assert cache.stats().num_snapshots == 0 and cache.match(cache.key(tokens)).num_pages == 2
    check_invariants(cache)
