"""What is reused, what is kept, what is evicted: one behaviour per test, checked against a shadow of the contents."""

from zlib import crc32

import pytest
import torch
from shadow import Shadow, check_invariants, make_cache, runs_of

from swa_attn.kvcache import ABSENT, GroupSpec, KVCache, PageAccountingError, SnapshotPolicy, pages_for_budget
from swa_attn.kvcache.sizing import working_set

HYBRID = {"full": None, "swa": 9}
PAGE_AND_WINDOW = [(1, 1), (1, 16), (4, 1), (4, 2), (4, 5), (4, 9), (16, 1), (16, 16), (16, 128), (16, 129), (64, 16)]


def hybrid(page_size=4, full=200, swa=200, window=9, **options) -> Shadow:
    return Shadow(make_cache({"full": None, "swa": window}, page_size, {"full": full, "swa": swa}, **options))


def text(name: str, length: int) -> list[int]:
    """Tokens that nothing with another name begins with."""
    return [crc32(name.encode()) + i for i in range(length)]


@pytest.mark.parametrize(("page_size", "window"), PAGE_AND_WINDOW)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_an_exact_repeat_hits_all_but_the_page_of_its_last_token(page_size, window, extra):
    shadow = hybrid(page_size, window=window)
    prompt = text("a", 4 * page_size + extra)
    assert shadow.run(prompt) == 0
    assert shadow.run(prompt) == (len(prompt) - 1) // page_size * page_size
    check_invariants(shadow.cache)


@pytest.mark.parametrize(("page_size", "window"), PAGE_AND_WINDOW)
def test_every_turn_of_a_conversation_hits_up_to_the_end_of_the_last(page_size, window):
    shadow = hybrid(page_size, full=2000, swa=400, window=window)
    history = text("a", 37)
    shadow.run(history)
    for turn in range(12):
        computed = len(history)  # the last generated token of a turn is never computed, so it is in `more`
        history = history + text(f"turn {turn}", 31)
        assert shadow.run(history) == computed // page_size * page_size
    check_invariants(shadow.cache)


@pytest.mark.parametrize(("page_size", "window"), PAGE_AND_WINDOW)
def test_a_fan_out_hits_at_the_divergence_from_the_third_request_on(page_size, window):
    shadow = hybrid(page_size, full=2000, swa=800, window=window)
    shared = text("system prompt", 5 * page_size + page_size // 2)
    tails = [text(f"tail {i}", 3 * window + 2 * page_size) for i in range(5)]
    hits = [shadow.run(shared + tail) for tail in tails]
    divergence = 5 * page_size
    # With W = 1 no window is needed, so the first repetition resumes already.
    assert hits == [0, divergence if window == 1 else 0, divergence, divergence, divergence]
    assert shadow.cache.stats().snapshot_misses == (window > 1)
    check_invariants(shadow.cache)


def test_a_request_resumes_at_the_last_snapshot_before_the_divergence():
    shadow = hybrid(page_size=4, window=9)
    shadow.run(text("a", 40))
    shadow.run(text("a", 80))
    assert shadow.run(text("a", 61) + text("b", 9)) == 40
    assert shadow.run(text("a", 61) + text("c", 9)) == 60
    assert shadow.run(text("a", 200)) == 80


def test_snapshots_at_an_interval_serve_the_first_divergence():
    shadow = hybrid(page_size=4, window=9, policy=SnapshotPolicy(slack_pages=0, fixed=(), every=10, quotas={}))
    shadow.run(text("a", 40))
    # The page boundaries after 10, 20, ... are 12, 20, ...; the windows there are pages 1, 2 and 3, 4.
    assert shadow.run(text("a", 15) + text("b", 9)) == 12
    assert shadow.run(text("a", 19) + text("c", 9)) == 16  # pages 2, 3: one of each
    assert shadow.run(text("a", 23) + text("d", 9)) == 20


def test_sequences_running_together_share_what_the_first_has_finished():
    shadow = hybrid(page_size=4, window=9)
    prompt = text("a", 30)
    first, second = shadow.begin(prompt), shadow.begin(prompt)
    for sequence in (first, second):
        shadow.compute(sequence, 30)
    assert first.block_tables["full"][:7] == second.block_tables["full"][:7]
    assert first.block_tables["full"][7] != second.block_tables["full"][7]
    assert shadow.cache.pools["full"].num_in_use == 9
    check_invariants(shadow.cache)
    shadow.end(first)
    shadow.check_readable(second)
    shadow.end(second)


def test_pages_computed_again_are_exchanged_for_the_cached_ones():
    shadow = hybrid(page_size=4, window=9)
    shadow.run(text("a", 40))
    again = shadow.begin(text("a", 25) + text("b", 15))
    assert again.hit_tokens == 0
    match = shadow.cache.match(again.key)
    cached = shadow.cache.prefixes.full.ids(match.path, 0, 6, 0)
    shadow.compute(again, 40)
    assert again.block_tables["full"][:6] == cached
    assert shadow.cache.stats().pools["full"].peak_in_use == 10
    shadow.end(again)
    check_invariants(shadow.cache)


def test_windowed_pages_are_freed_as_the_window_leaves_them():
    shadow = hybrid(page_size=4, full=250, window=9, enable_prefix_cache=False)
    sequence = shadow.begin(text("a", 1000))
    assert shadow.compute(sequence, 400)
    assert sequence.block_tables["swa"][:98] == [ABSENT] * 98
    assert shadow.cache.pools["swa"].num_in_use == 2
    assert shadow.cache.pools["full"].num_in_use == 100
    for _ in range(600):
        assert shadow.compute(sequence, 1)
        assert shadow.cache.pools["swa"].num_in_use <= 3
    stats = shadow.cache.stats()
    assert stats.pools["swa"].peak_in_use == 100  # the first step wrote 400 tokens at once
    assert stats.pools["swa"].oblivious_in_use == stats.pools["full"].in_use == 250
    assert stats.pools["swa"].oblivious_peak == 250
    shadow.end(sequence)
    assert shadow.cache.stats().pools["swa"].free == 200


def test_the_last_page_boundary_keeps_its_window_until_the_next_one():
    shadow = hybrid(page_size=16, window=2)
    sequence = shadow.begin(text("a", 20))
    shadow.tokens[sequence] += text("generated", 27)
    for _ in range(47):
        shadow.compute(sequence, 1)
    shadow.end(sequence)
    assert shadow.run(text("a", 20) + text("generated", 40)) == 32


def test_without_prefix_cache_nothing_is_kept_or_hit():
    shadow = hybrid(enable_prefix_cache=False)
    assert [shadow.run(text("a", 50)) for _ in range(3)] == [0, 0, 0]
    assert all(p.free == p.num_pages for p in shadow.cache.stats().pools.values())


@pytest.mark.parametrize("windows", [{"full": None}, {"swa": 9}, {"full": None, "swa": 9, "mtp": 33}])
def test_other_sets_of_groups_hit_and_free_too(windows):
    shadow = Shadow(make_cache(windows, 4, dict.fromkeys(windows, 100)))
    shared = text("a", 42)
    hits = [shadow.run(shared + text(f"tail {i}", 50)) for i in range(3)]
    assert hits == [0, 0 if set(windows) != {"full"} else 40, 40]
    assert shadow.run(shared + text("tail 0", 80)) == 92
    check_invariants(shadow.cache)


def test_a_windowed_only_model_runs_longer_than_its_pool_and_forgets_old_prefixes():
    shadow = Shadow(make_cache({"swa": 9}, 4, {"swa": 6}))
    for i in range(40):
        shadow.run(text(str(i), 60))
        check_invariants(shadow.cache)
    assert shadow.cache.prefixes.tree.num_keys <= 8 * 6


def test_salts_and_fingerprints_separate():
    shadow = hybrid()
    prompt = text("a", 30)
    shadow.run(prompt, salt="tenant 1")
    assert shadow.run(prompt, salt="tenant 2") == 0
    assert shadow.run(prompt, salt="tenant 1") == 28
    names = {hybrid().cache.key(prompt).digests[0]}
    for change in ({"window": 8}, {"page_size": 3}):
        names.add(hybrid(**change).cache.key(prompt).digests[0])
    group = GroupSpec("full", (0,), 1, 2, 1)
    for fingerprint in ("value scale 0.707", "value scale 0.612"):
        for dtype in (torch.float16, torch.bfloat16):
            names.add(KVCache([group], 4, {"full": 1}, dtype, "cpu", fingerprint).key(prompt).digests[0])
    assert len(names) == 7


def test_eviction_is_leaf_first_and_spares_running_sequences():
    shadow = hybrid(page_size=4, full=20, swa=20)
    shadow.run(text("old", 20))
    running = shadow.begin(text("running", 40))
    shadow.compute(running, 20)
    shadow.run(text("new", 20))
    shadow.compute(running, 20)
    assert shadow.run(text("x", 40)) == 0  # 20 pages: 10 running, 10 of `x`
    check_invariants(shadow.cache)
    assert shadow.cache.stats().evicted_pages == 10
    shadow.check_readable(running)
    assert shadow.run(text("old", 20)) == 0
    assert not shadow.cache.extend(running, 100)
    shadow.end(running)


def test_the_least_recently_used_branch_goes_first_and_from_its_end():
    shadow = hybrid(page_size=4, full=24, swa=100)
    shadow.run(text("a", 40))
    shadow.run(text("b", 40))
    shadow.run(text("a", 41))
    shadow.run(text("c", 24))  # 4 pages were free
    assert [shadow.cache.match(shadow.cache.key(text(n, 41))).num_pages for n in "abc"] == [10, 8, 6]
    check_invariants(shadow.cache)


def test_windows_and_full_pages_are_evicted_separately():
    shadow = hybrid(page_size=4, full=1000, swa=12, window=9)  # a snapshot takes 2 pages
    for i in range(20):
        shadow.run(text(str(i), 21), chunk=4)
    stats = shadow.cache.stats()
    assert stats.evicted_pages == 0 and stats.evicted_snapshots > 0
    assert shadow.cache.match(shadow.cache.key(text("0", 22))).num_pages == 5
    assert shadow.run(text("0", 21), chunk=4) == 0
    assert shadow.run(text("0", 21), chunk=4) == 20
    check_invariants(shadow.cache)


def test_a_window_that_is_resumed_from_outlives_newer_ones_that_are_not():
    shadow = hybrid(page_size=4, full=1000, swa=10, window=9)  # 2 pages per snapshot, 3 for the running request
    shared = text("shared", 20)
    shadow.run(shared, chunk=4)
    for i in range(8):
        assert shadow.run(shared + text(str(i), 9), chunk=4) == 20
        shadow.run(text(f"other {i}", 21), chunk=4)
    assert shadow.cache.stats().evicted_snapshots > 0


def test_a_window_that_a_sequence_uses_is_not_dropped_in_vain():
    shadow = hybrid(page_size=4, full=1000, swa=6, window=9)
    shadow.run(text("old", 21), chunk=4)
    user = shadow.begin(text("old", 22))
    assert user.hit_tokens == 20
    shadow.run(text("newer", 21), chunk=4)  # needs 3 pages, 4 are free; leaves 2 cached
    shadow.run(text("newest", 21), chunk=4)
    shadow.end(user)
    assert shadow.cache.stats().evicted_snapshots == 1
    assert shadow.run(text("old", 22)) == 20


def test_many_uses_of_one_prefix_leave_nothing_behind():
    shadow = hybrid()
    for _ in range(1000):
        shadow.end(shadow.begin(text("a", 9)))
        shadow.run(text("a", 9))
    assert len(runs_of(shadow.cache)) == 1
    check_invariants(shadow.cache)


@pytest.mark.parametrize("num_users", [5, 12, 25, 45])
def test_round_robin_conversations_hit_while_one_window_each_fits(num_users):
    shadow = hybrid(page_size=4, full=10000, swa=100, window=9)  # 2 pages per window
    users = [text(str(u), 17) for u in range(num_users)]
    for turn in range(4):
        for u in range(len(users)):
            computed = len(users[u])
            hit = shadow.run(users[u], chunk=16)
            assert hit == (0 if turn == 0 else (computed - 20) // 4 * 4), (turn, u)
            users[u] = users[u] + text(f"{u} {turn}", 20)
    check_invariants(shadow.cache)


def test_full_pages_survive_the_churn_of_windows():
    shadow = hybrid(page_size=4, full=800, swa=16, window=9)
    long = [text(str(u), 300) for u in range(8)]
    for tokens in long:
        shadow.run(tokens, chunk=8)
    for tokens in long:
        assert shadow.cache.match(shadow.cache.key(tokens)).num_pages == 74


def test_admission_counts_what_running_prompts_still_need():
    shadow = hybrid(page_size=4, full=10, swa=10, window=9)
    first = shadow.begin(text("a", 24))
    shadow.compute(first, 4)  # holds 1 of 6 full pages
    assert not shadow.cache.can_admit(shadow.cache.key(text("b", 17)))
    assert shadow.cache.can_admit(shadow.cache.key(text("b", 16)))
    shadow.end(first)


def test_admission_checks_the_windowed_pool_too():
    shadow = hybrid(page_size=4, full=1000, swa=7, window=9)  # a sequence needs 2 pages of window and 1 to write
    first = shadow.begin(text("a", 100))
    shadow.compute(first, 8)
    assert shadow.cache.can_admit(shadow.cache.key(text("b", 100)))
    second = shadow.begin(text("b", 100))
    assert not shadow.cache.can_admit(shadow.cache.key(text("c", 100)))
    assert shadow.cache.can_admit(shadow.cache.key(text("c", 4)))
    for sequence in (first, second):
        shadow.end(sequence)


def test_admission_does_not_count_its_own_prefix_as_evictable():
    shadow = hybrid(page_size=4, full=6, swa=6, window=5)
    shadow.run(text("a", 20))
    key = shadow.cache.key(text("a", 20) + text("b", 5))
    assert not shadow.cache.can_admit(key)
    assert shadow.cache.can_admit(shadow.cache.key(text("a", 20) + text("b", 4)))
    assert shadow.cache.can_admit(shadow.cache.key(text("other", 24)))


def test_live_sequences_per_windowed_pool_follow_the_window_arithmetic():
    shadow = hybrid(page_size=16, full=4000, swa=90, window=128)
    sequences = []
    while shadow.cache.can_admit(shadow.cache.key(text("a", 300))):
        sequences.append(shadow.begin(text(str(len(sequences)), 300)))
        while sequences[-1].num_computed < 300:
            assert shadow.compute(sequences[-1], 1)
    assert len(sequences) == 90 // (8 + 1)


def test_extend_takes_nothing_when_one_pool_is_full():
    shadow = hybrid(page_size=4, full=100, swa=3, window=9)
    sequence = shadow.begin(text("a", 100))
    assert shadow.cache.extendable(sequence) == 12
    assert not shadow.cache.extend(sequence, 13)
    assert shadow.cache.pools["full"].num_in_use == 0
    assert shadow.compute(sequence, 12)
    assert shadow.cache.extendable(sequence) == 4
    while sequence.num_computed < 100:
        assert shadow.compute(sequence, min(4, 100 - sequence.num_computed))


def test_pages_of_a_step_that_failed_are_used_by_the_next():
    shadow = hybrid(page_size=4)
    sequence = shadow.begin(text("a", 30))
    assert shadow.cache.extend(sequence, 20)
    assert shadow.cache.extend(sequence, 3)
    assert [pool.num_in_use for pool in shadow.cache.pools.values()] == [5, 5]
    check_invariants(shadow.cache)
    shadow.cache.commit(sequence, text("a", 3))
    assert shadow.cache.extend(sequence, 18)
    assert [pool.num_in_use for pool in shadow.cache.pools.values()] == [6, 6]
    shadow.end(sequence)
    check_invariants(shadow.cache)


@pytest.mark.parametrize(("page_size", "window"), PAGE_AND_WINDOW)
def test_the_working_set_is_exactly_what_a_sequence_needs_alone(page_size, window):
    length = 3 * window + 3 * page_size
    needed = working_set(GroupSpec("swa", (0,), 1, 1, 1, window), length, page_size)
    shadow = hybrid(page_size, full=1000, swa=needed, window=window)
    assert shadow.cache.fits(length) is None
    sequence = shadow.begin(text("a", length))
    for _ in range(length):
        assert shadow.compute(sequence, 1)
    shadow.end(sequence)
    if needed > 1:
        tight = hybrid(page_size, full=1000, swa=needed - 1, window=window)
        assert tight.cache.fits(length) == f"{length} tokens need {needed} pages of pool 'swa', which has {needed - 1}"
        sequence = tight.begin(text("a", length))
        assert not all(tight.compute(sequence, 1) for _ in range(length))


def test_a_cached_page_is_never_written():
    shadow = hybrid(page_size=4, window=9)
    sequence = shadow.begin(text("a", 12))
    shadow.compute(sequence, 8)
    sequence.num_computed = 6  # as if the last finished page were to be computed again
    with pytest.raises(PageAccountingError, match="is cached and would be written"):
        shadow.cache.extend(sequence, 1)


def test_misuse_is_named():
    shadow = hybrid()
    with pytest.raises(ValueError, match="tokens must hold at least one token"):
        shadow.cache.key([])
    sequence = shadow.begin(text("a", 10))
    with pytest.raises(ValueError, match="10 tokens end at 10, beyond the pages from extend"):
        shadow.cache.commit(sequence, text("a", 10))
    shadow.cache.end(sequence)
    for call in (shadow.cache.end, lambda s: shadow.cache.extend(s, 1), lambda s: shadow.cache.commit(s, [])):
        with pytest.raises(ValueError, match="the sequence has ended"):
            call(sequence)


@pytest.mark.parametrize(
    ("groups", "num_pages", "message"),
    [
        ([], {}, "at least one"),
        ([("a", (0,), None), ("a", (1,), 4)], {"a": 1}, "distinct names"),
        ([("a", (0,), None), ("b", (0,), 4)], {"a": 1, "b": 1}, "a layer belongs to one group only"),
        ([("a", (0,), None), ("b", (1,), None)], {"a": 1, "b": 1}, "at most one group may have no window"),
        ([("a", (0,), None)], {"b": 1}, r"num_pages must name exactly the groups \['a'\]"),
    ],
)
def test_groups_are_checked(groups, num_pages, message):
    specs = [GroupSpec(name, layers, 1, 1, 1, window) for name, layers, window in groups]
    with pytest.raises(ValueError, match=message):
        KVCache(specs, 4, num_pages, torch.float32, "cpu", "")


def test_stats_count_lookups_by_outcome():
    shadow = hybrid(page_size=4, window=9)
    shadow.run(text("a", 40))
    shadow.run(text("a", 21) + text("b", 10))
    shadow.run(text("a", 40))
    stats = shadow.cache.stats()
    assert (stats.num_lookups, stats.looked_up_tokens) == (3, 40 + 31 + 40)
    assert (stats.matched_tokens, stats.hit_tokens, stats.snapshot_misses) == (20 + 36, 36, 1)


class TestBudget:
    GROUPS = (GroupSpec("full", (0,), 4, 192, 128), GroupSpec("swa", tuple(range(1, 6)), 8, 192, 128, 128))

    def split(self, budget, groups=GROUPS, live=0, **options):
        pages = pages_for_budget(groups, 16, torch.bfloat16, budget, min_windowed_tokens=live, **options)
        bytes_used = sum(pages[g.name] * 16 * g.bytes_per_token(torch.bfloat16) for g in groups)
        assert bytes_used <= budget
        return pages, bytes_used / budget

    def test_the_windowed_pool_gets_its_share(self):
        pages, used = self.split(1 << 30)
        assert pages["swa"] == int(0.1 * pages["full"]) and used > 0.99

    def test_the_windowed_pool_holds_at_least_the_live_windows(self):
        pages, used = self.split(1 << 28, live=64 * 144)
        assert pages["swa"] == 576 and used > 0.99

    def test_one_kind_of_group_gets_everything(self):
        for group in self.GROUPS:
            assert self.split(1 << 28, (group,))[1] > 0.99

    def test_too_little_is_refused(self):
        with pytest.raises(ValueError, match=r"budget_bytes is too small: 1048576 cannot hold 576 pages"):
            self.split(1 << 20, live=64 * 144)
