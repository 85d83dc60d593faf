"""Who runs in a step, without a model: chunks, budgets, order, admission, preemption."""

import pytest
import torch

from swa_attn.kvcache import GroupSpec, KVCache, PageAccountingError
from swa_attn.runner.request import FinishReason, Request, RequestState
from swa_attn.runner.sampler import SamplingParams
from swa_attn.runner.scheduler import Scheduler

GROUPS = (GroupSpec("full", (0,), 1, 1, 1), GroupSpec("swa", (1,), 1, 1, 1, window=9))


class Driver:
    """Runs a scheduler's steps; every sampled token is 0."""

    def __init__(self, full=100, swa=100, budget=16, max_num_seqs=8) -> None:
        self.cache = KVCache(GROUPS, 4, {"full": full, "swa": swa}, torch.float32, "cpu", "")
        self.scheduler = Scheduler(self.cache, budget, max_num_seqs)
        self.requests: list[Request] = []

    def add(self, length: int, max_tokens: int = 4) -> Request:
        number = len(self.requests)
        prompt = tuple(range(1000 * number, 1000 * number + length))
        request = Request(number, prompt, SamplingParams(max_tokens=max_tokens), "", self.cache.key(prompt))
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def step(self) -> list[tuple[int, int]]:
        """(request, tokens) of every chunk of the step."""
        chunks = self.scheduler.schedule()
        assert sum(c.num_tokens for c in chunks) <= self.scheduler.max_tokens_per_step
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        for chunk in chunks:
            request, start = chunk.request, chunk.request.pages.num_computed
            last = chunk.num_tokens == request.num_uncomputed
            self.cache.commit(request.pages, request.tokens(start, start + chunk.num_tokens))
            if last:
                request.add_token(0)
                if len(request.output) == request.params.max_tokens:
                    self.scheduler.finish(request, FinishReason.LENGTH)
        return [(c.request.request_id, c.num_tokens) for c in chunks]


def test_decodes_come_first_then_prompts_then_new_requests():
    driver = Driver(budget=16)
    driver.add(10)
    assert driver.step() == [(0, 10)]
    driver.add(30)
    driver.add(20)
    assert driver.step() == [(0, 1), (1, 15)]
    assert driver.step() == [(0, 1), (1, 15)]
    assert driver.step() == [(0, 1), (1, 1), (2, 14)]


def test_a_long_prompt_does_not_hold_up_decodes():
    driver = Driver(budget=8)
    driver.add(4, max_tokens=20)
    driver.step()
    driver.add(70)
    for _ in range(10):
        assert driver.step() == [(0, 1), (1, 7)]


def test_more_decodes_than_the_budget_take_turns_by_age():
    driver = Driver()
    for _ in range(4):
        driver.add(2, max_tokens=3)
    driver.step()
    driver.scheduler.max_tokens_per_step = 3
    assert driver.step() == [(0, 1), (1, 1), (2, 1)]
    driver.step()
    assert driver.step() == [(3, 1)]


def test_the_number_of_running_requests_is_bounded():
    driver = Driver(budget=100, max_num_seqs=2)
    for _ in range(4):
        driver.add(5, max_tokens=2)
    assert [driver.step() for _ in range(4)] == [[(0, 5), (1, 5)], [(0, 1), (1, 1)], [(2, 5), (3, 5)], [(2, 1), (3, 1)]]
    assert driver.step() == [] and not driver.scheduler.has_work


def test_a_prompt_that_does_not_fit_now_waits_and_is_not_overtaken():
    driver = Driver(full=10, budget=100)
    driver.add(24, max_tokens=3)
    big, small = driver.add(24), driver.add(4)
    assert driver.step() == [(0, 24)]
    assert (big.state, small.state) == (RequestState.WAITING, RequestState.WAITING)
    while driver.requests[0].state is not RequestState.FINISHED:
        driver.step()
    assert driver.step() == [(1, 24), (2, 4)]


def test_a_small_windowed_pool_shrinks_chunks_instead_of_failing():
    driver = Driver(swa=5, budget=100)
    driver.add(60)
    sizes = []
    while driver.scheduler.has_work:
        sizes += [n for _, n in driver.step()]
    assert sizes[:6] == [20, 12, 12, 12, 4, 1]  # 5 pages at first, then what two pages of window leave


def test_the_newest_request_is_preempted_and_comes_back_first():
    driver = Driver(full=6, budget=100)
    first, second = driver.add(10, max_tokens=10), driver.add(11, max_tokens=10)
    third = driver.add(4)
    assert driver.step() == [(0, 10), (1, 11)]
    while second.state is RequestState.RUNNING:
        driver.step()
    assert (first.state, second.num_preemptions, first.num_preemptions) == (RequestState.RUNNING, 1, 0)
    assert list(driver.scheduler.waiting) == [second, third]
    assert second.key.num_tokens == second.num_tokens > 11
    while driver.scheduler.has_work:
        driver.step()
    assert [len(r.output) for r in driver.requests] == [10, 10, 4]


def test_a_preempted_request_resumes_from_the_cache_when_its_pages_are_still_there():
    driver = Driver(budget=100)
    request = driver.add(22)
    driver.step()
    driver.scheduler.preempt(request)
    assert driver.step() == [(0, 3)]  # 20 tokens were finished pages; 22 and one generated are known
    assert request.cached_tokens == 0


def test_unfinished_prompts_that_block_each_other_are_resolved():
    driver = Driver(full=100, swa=7, budget=100)
    for _ in range(3):
        driver.add(60, max_tokens=30)
    for _ in range(2000):
        if not driver.scheduler.has_work:
            break
        assert driver.step()
    assert [len(r.output) for r in driver.requests] == [30, 30, 30]
    assert all(pool.num_in_use == 0 for pool in driver.cache.pools.values())


@pytest.mark.parametrize("full", [25, 40, 100])
@pytest.mark.parametrize("swa", [3, 4, 7, 40])
@pytest.mark.parametrize("budget", [1, 5, 64])
def test_every_request_ends_whatever_the_room(full, swa, budget):
    driver = Driver(full, swa, budget)
    for i in range(9):
        driver.add(1 + 11 * i % 60, max_tokens=1 + 13 * i % 40)
    steps = 0
    while driver.scheduler.has_work:
        assert driver.step()
        steps += 1
        assert steps < 5000
    assert [len(r.output) for r in driver.requests] == [1 + 13 * i % 40 for i in range(9)]


def test_a_waiting_request_can_be_taken_out():
    driver = Driver(max_num_seqs=1)
    driver.add(4, max_tokens=2)
    waiting = driver.add(4)
    driver.step()
    driver.scheduler.finish(waiting, FinishReason.CANCELLED)
    assert driver.step() == [(0, 1)]
    assert not driver.scheduler.has_work


def test_pages_lost_to_a_stranger_raise_instead_of_waiting_forever():
    driver = Driver(full=10)
    driver.cache.pools["full"].hold(len(driver.cache.pools["full"].allocate(8)))
    driver.add(12)
    with pytest.raises(PageAccountingError, match="no request can advance: 0 running, 1 waiting"):
        driver.step()
