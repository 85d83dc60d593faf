"""Pages from blocks, and the bound that no cache passes."""

import random

import pytest

from swa_attn.replay.traces import Prompt, Trace
from swa_attn.replay.workload import Workload, infinite_cache, workload_of


def test_pages_of_a_block():
    w = Workload((), block_size=512, page_size=64)
    assert w.pages(Prompt(1100, ((7, 2),))) == tuple(range(56, 72))
    assert w.pages(Prompt(1100, ((-3, 1), (0, 1)))) == (*range(-24, -16), *range(8))


def test_blocks_of_a_page_are_named_by_the_last():
    w = Workload((), block_size=64, page_size=192)
    assert w.pages(Prompt(64 * 7 + 5, ((1, 4), (10, 3)))) == (3, 11)


def test_what_a_partial_block_leaves_unnamed_is_not_in_the_key():
    w = Workload((), block_size=512, page_size=64)
    assert w.key(Prompt(1100, ((7, 2),))).num_tokens == 1024 + 63
    assert w.key(Prompt(1030, ((7, 2),))).num_tokens == 1030
    assert w.key(Prompt(500, ())).num_tokens == 63
    same = Workload((), block_size=64, page_size=64)
    assert same.key(Prompt(130, ((7, 2),))).num_tokens == 130


@pytest.mark.parametrize("block, page", [(512, 96), (64, 100), (64, 0)])
def test_page_sizes_that_do_not_fit(block, page):
    with pytest.raises(ValueError, match="page_size must divide"):
        Workload((), block, page)


def test_default_page_size_and_limit():
    trace = Trace("mooncake", 512, arrivals=tuple(Prompt(n, ()) for n in range(1, 11)))
    assert workload_of(trace, num_users=1).page_size == 64
    assert [p.num_tokens for p in workload_of(trace, num_users=1, limit=3).prompts] == [1, 2, 3]
    assert workload_of(Trace("mooncake", 48, arrivals=trace.arrivals), num_users=1).page_size == 48
    assert workload_of(trace, num_users=1).num_warm_up == 2


def test_the_bound_is_that_of_a_dict():
    rng = random.Random(7)
    prompts, chains = [], [[(next_id := 1)]]
    for _ in range(300):
        chain = list(rng.choice(chains))
        chain = chain[: rng.randint(1, len(chain))]
        for _ in range(rng.randint(0, 5)):
            next_id += 1
            chain.append(next_id)
        chains.append(chain)
        prompts.append(Prompt(len(chain) * 64 + rng.choice([0, 0, 1, 63]), tuple((i, 1) for i in chain)))
    workload = Workload(tuple(prompts), 64, 64)

    seen, total, hit = set(), 0, 0
    for number, prompt in enumerate(prompts):
        pages = [i for i, _ in prompt.runs]
        known = next((i for i, page in enumerate(pages) if page not in seen), len(pages))
        seen.update(pages)
        if number >= 60:
            total += prompt.num_tokens
            hit += min(known * 64, prompt.num_tokens - 1)

    bound = infinite_cache(workload)
    assert (bound.input_tokens, bound.hit_tokens) == (total, hit)
    assert 0 < bound.hit_rate < 1
    assert infinite_cache(Workload((), 64, 64)).hit_rate == 0
