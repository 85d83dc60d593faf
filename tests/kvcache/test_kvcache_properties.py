"""Random interleavings of everything a scheduler may do keep the cache's promises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow import Shadow, check_invariants, make_cache

from swa_attn.kvcache import SnapshotPolicy

MODELS = {
    "hybrid": {"full": None, "swa": 5},
    "hybrid-window-below-page": {"full": None, "swa": 2},
    "hybrid-window-1": {"full": None, "swa": 1},
    "two-windows": {"full": None, "swa": 4, "mtp": 9},
    "full-only": {"full": None},
    "windowed-only": {"swa": 6},
    "window-above-length": {"full": None, "swa": 1000},
}

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=30)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), prompts),
        st.tuples(st.just("compute"), st.tuples(st.integers(0, 5), st.integers(1, 9))),
        st.tuples(st.just("grow"), st.tuples(st.integers(0, 5), st.lists(st.integers(0, 1), min_size=1, max_size=9))),
        st.tuples(st.just("end"), st.integers(0, 5)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("windows", MODELS.values(), ids=MODELS)
@settings(max_examples=60, deadline=None)
@given(
    actions=actions,
    page_size=st.sampled_from([1, 2, 3, 4, 8]),
    num_pages=st.integers(3, 24),
    policy=st.sampled_from(
        [
            SnapshotPolicy(slack_pages=0, fixed=()),
            SnapshotPolicy(slack_pages=0, fixed=(), every=1, quotas={}),
            SnapshotPolicy(slack_pages=1, fixed=(5, 9), every=6),
            SnapshotPolicy(slack_pages=2, fixed=(), demote_superseded=False, branches=False),
        ]
    ),
)
def test_any_interleaving_keeps_the_promises(windows, actions, page_size, num_pages, policy):
    shadow = Shadow(make_cache(windows, page_size, dict.fromkeys(windows, num_pages), policy=policy))
    running = []
    for action, argument in actions:
        if action == "begin" and len(running) < 6:
            if shadow.cache.can_admit(shadow.cache.key(argument)):
                running.append(shadow.begin(argument))
                assert running[-1].hit_tokens < len(argument)
                assert shadow.cache.extendable(running[-1]) > 0
        elif action == "compute" and running:
            sequence = running[argument[0] % len(running)]
            left = len(shadow.tokens[sequence]) - sequence.num_computed
            count = min(argument[1], left)
            expected = count <= shadow.cache.extendable(sequence)
            if count:
                assert shadow.compute(sequence, count) == expected
        elif action == "grow" and running:  # generated tokens
            shadow.tokens[running[argument[0] % len(running)]].extend(argument[1])
        elif action == "end" and running:
            shadow.end(running.pop(argument % len(running)))
        check_invariants(shadow.cache)
    for sequence in running:
        shadow.end(sequence)
    check_invariants(shadow.cache)
    for name, pool in shadow.cache.pools.items():
        assert pool.num_in_use == 0
        assert shadow.cache.stats().pools[name].free + shadow.cache.stats().pools[name].cached == pool.num_pages


@pytest.mark.parametrize("windows", MODELS.values(), ids=MODELS)
@settings(max_examples=40, deadline=None)
@given(tokens=prompts, page_size=st.integers(1, 9), chunk=st.integers(1, 40), more=prompts)
def test_what_has_run_is_hit_by_a_repeat_and_by_a_continuation(windows, tokens, page_size, chunk, more):
    shadow = Shadow(make_cache(windows, page_size, dict.fromkeys(windows, 200)))
    assert shadow.run(tokens, chunk) == 0
    assert shadow.run(tokens, chunk) == (len(tokens) - 1) // page_size * page_size
    assert shadow.run(tokens + more, chunk) == len(tokens) // page_size * page_size
    check_invariants(shadow.cache)
