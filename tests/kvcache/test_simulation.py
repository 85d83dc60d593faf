"""A hundred thousand random steps of the tiers, checked against contents that are derived from the tokens."""

import pytest
from fake_tiers import GROUPS, Simulation
from shadow import check_invariants

from swa_attn.kvcache import GroupSpec, Planner, SnapshotPolicy, Tier, WritePolicy

STEPS = 30_000
TWO_WINDOWS = (*GROUPS, GroupSpec("mtp", (5,), 1, 1, 1, 12))
SETUPS = {
    "through": {"device": (26, 18), "planner": Planner(deadline=5.0, rebuild_overhead=0.0, prefill_tokens_per_second=9.0)},
    "back, no rebuild, no disk": {
        "write_policy": WritePolicy.BACK, "planner": Planner(deadline=5.0, rebuild=False), "disk": None
    },
    "selective, two windows, tight": {
        "write_policy": WritePolicy.SELECTIVE, "groups": TWO_WINDOWS,
        "device": (24, 16, 16), "host": (24, 8, 12), "disk": 6_000,
    },
    "in place, hardly any host": {
        "device": (30, 14), "host": (12, 3), "host_pages_usable": True, "policy": SnapshotPolicy(slack_pages=0, every=12),
    },
}  # fmt: skip


class Traffic:
    """What users do: prompts that share beginnings, conversations that go on, requests that are given up."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.random = simulation, simulation.random
        self.running: list = []
        self.histories: list[list[int]] = [[]]

    def step(self) -> None:
        self.random.choices(
            [self.begin, self.compute, self.end, self.transfer, self.time_passes, self.trouble],
            [3, 10, 1, 8, 1, 0.2],
        )[0]()

    def prompt(self) -> list[int]:
        history = self.random.choice(self.histories)[: self.random.choice([None, None, 9, 20, 30])]
        return history + [self.random.randrange(3) for _ in range(self.random.randrange(1, 20))]

    def begin(self) -> None:
        prompt = self.prompt()
        cache = self.simulation.cache
        if len(self.running) < 4 and cache.fits(len(prompt)) is None and cache.can_admit(self.simulation.key(prompt)):
            sequence = self.simulation.begin(prompt)
            assert sequence.hit_tokens < len(prompt)
            self.running.append(sequence)

    def compute(self) -> None:
        if not self.running:
            return
        sequence = self.random.choice(self.running)
        if not self.simulation.is_ready(sequence):
            return
        left = len(self.simulation.tokens[sequence]) - sequence.num_computed
        if not left:
            self.simulation.tokens[sequence].append(self.random.randrange(3))
            left = 1
        count = min(left, self.random.choice([1, 5, 16]), self.simulation.cache.extendable(sequence))
        if count > 0:
            self.simulation.compute(sequence, count)

    def end(self) -> None:
        if self.running:
            sequence = self.running.pop(self.random.randrange(len(self.running)))
            if sequence in self.simulation.toxic:
                self.histories.append(self.simulation.tokens[sequence])
                self.simulation.fail(sequence)
                return
            tokens = self.simulation.tokens[sequence][: sequence.num_computed]
            self.simulation.end(sequence)
            if len(tokens) < 70:
                self.histories.append(tokens)
                del self.histories[:-30]

    def transfer(self) -> None:
        self.simulation.mover.advance()
        if self.random.random() < 0.5:
            self.simulation.cache.poll()

    def time_passes(self) -> None:
        self.simulation.now += self.random.choice([0.1, 6.0])
        self.simulation.cache.poll()

    def trouble(self) -> None:
        mover = self.simulation.mover
        mover.lose = self.random.choice([0.0, 0.0, 0.1, 1.0])
        mover.refuse = self.random.choice([0.0, 0.0, 0.1, 1.0])
        mover.stuck = self.random.random() < 0.2
        if self.random.random() < 0.1:
            mover.records.clear()

    def settle(self) -> None:
        """Everything ends, and what is left behind is what a recount gives."""
        while self.running:
            self.end()
        self.simulation.mover.drain()
        check_invariants(self.simulation.cache)
        for shelf in self.simulation.cache.shelves:
            assert all(pool.num_in_use == 0 for pool in shelf.pools)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_no_step_serves_a_wrong_page(setup):
    seed = 20_261_124
    simulation = Simulation(seed, **setup)
    traffic = Traffic(simulation)
    for step in range(STEPS):
        try:
            traffic.step()
            if step % 500 == 499:
                traffic.settle()
        except Exception as error:
            raise AssertionError(f"seed {seed}, step {step}") from error
    traffic.settle()
    stats = simulation.cache.stats()
    report = (
        f"seed {seed}: {STEPS} steps, {simulation.checked} slots compared, {simulation.mover.faults} faults; {stats}"
    )
    assert simulation.checked > 5 * STEPS, report
    assert stats.hit_tokens > STEPS / 20 and stats.hit_tokens_by_tier[Tier.HOST] > 0, report
    if setup.get("disk", True):
        assert simulation.mover.faults > 100 and stats.lost_pages > 0 and stats.late_loads > 0, report
    if simulation.cache.planner.rebuild_overhead == 0.0:
        assert stats.num_rebuilds > STEPS / 1000 and stats.hit_tokens_by_tier[Tier.DISK] > 0, report
    print(report)


def test_what_went_wrong_is_never_served_again_nor_what_was_made_from_it():
    """Sequences that write nonsense are found out when their prompt is complete; so are those that read it till then."""
    for name, setup in SETUPS.items():
        simulation = Simulation(7, **setup)
        traffic = Traffic(simulation)
        failed = shared = 0
        for step in range(60):
            while not traffic.running:
                traffic.begin()
                traffic.transfer()
            simulation.toxic.add(traffic.running[-1])
            failed += 1
            for _ in range(30):
                traffic.step()
                for sequence in [s for s in traffic.running if s in simulation.toxic]:
                    if sequence.num_computed == len(simulation.tokens[sequence]):
                        shared += 1
                        traffic.histories.append(simulation.tokens[sequence])
                        simulation.fail(sequence)
                        traffic.running.remove(sequence)
            while traffic.running:
                traffic.end()
            for _ in range(4):  # transfers of the past are still under way
                prompt = traffic.prompt()
                if simulation.cache.fits(len(prompt)) is None and simulation.cache.can_admit(simulation.key(prompt)):
                    simulation.run(prompt, settle=False)
                    assert not simulation.toxic, f"{name}, step {step}: {prompt}"
            if step % 20 == 0:
                traffic.settle()
        traffic.settle()
        assert shared > failed / 4, f"{name}: hardly any was found out in time"
        assert simulation.cache.stats().hit_tokens > 200


@pytest.mark.parametrize("method", ["reset", "clear"])
def test_a_cache_that_was_emptied_in_the_middle_of_everything_serves_no_wrong_page(method):
    simulation = Simulation(3, **SETUPS["through"])
    traffic, cache = Traffic(simulation), simulation.cache
    for step in range(6000):
        traffic.step()
        if step % 200 == 199:
            if method == "clear":
                while traffic.running:
                    traffic.end()
            getattr(cache, method)()
            traffic.running.clear()
            simulation.tokens.clear()
            assert cache.num_pending == 0 and not cache.prefixes.tree.root.children
            assert all(pool.num_used == 0 for shelf in cache.shelves for pool in shelf.pools)
            check_invariants(cache)
    traffic.settle()
    assert simulation.checked > 10_000 and cache.stats().hit_tokens > 200
