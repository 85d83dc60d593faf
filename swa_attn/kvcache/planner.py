"""What to do with a hit: which of the ways to get there is the fastest, by what was measured so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .rebuild import RebuildPlan


class Action(Enum):
    """What happens to a part of a prompt."""

    REUSE = "reuse"  # on the device already
    IN_PLACE = "in place"  # read by the kernels from host memory
    PROMOTE = "promote"  # copied from host memory, layer by layer, while the model computes
    LOAD = "load"  # read from the store into host memory, then promoted
    REBUILD = "rebuild"  # windows recomputed from cached full-attention pages
    RECOMPUTE = "recompute"


@dataclass(frozen=True)
class Step:
    """One part of a plan: an amount of tokens or bytes and the time it is expected to take alone."""

    action: Action
    num_tokens: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Option:
    """One way to serve a prompt: resume after `resume` tokens.

    `seconds` is until the prompt has been computed: loads from the store first, then copies and computing side by side.
    """

    resume: int
    steps: tuple[Step, ...]
    seconds: float
    rebuild: RebuildPlan | None = None

    @property
    def actions(self) -> frozenset[Action]:
        return frozenset(step.action for step in self.steps)

    def explain(self) -> str:
        parts = []
        for step in self.steps:
            size = f", {step.num_bytes / 1e6:.1f} MB" if step.num_bytes else ""
            parts.append(f"{step.action.value} {step.num_tokens} tokens{size} ({step.seconds * 1e3:.2f} ms)")
        return f"resume at {self.resume}: {'; '.join(parts)}; {self.seconds * 1e3:.2f} ms in all"


@dataclass(frozen=True)
class Plan:
    """The chosen option and the ones it was chosen from."""

    chosen: Option
    options: tuple[Option, ...]

    @property
    def resume(self) -> int:
        return self.chosen.resume

    @property
    def rebuild(self) -> RebuildPlan | None:
        return self.chosen.rebuild

    @property
    def seconds(self) -> float:
        return self.chosen.seconds

    def explain(self) -> str:
        """One line per option, the chosen one first and marked."""
        others = sorted((o for o in self.options if o is not self.chosen), key=lambda o: o.seconds)
        return "\n".join([f"> {self.chosen.explain()}", *(f"  {o.explain()}" for o in others)])


@dataclass(frozen=True)
class Situation:
    """What a resume point would take, in tokens and bytes: the planner's input.

    Args:
        resume: tokens that would not be computed at full depth.
        num_tokens: of the prompt.
        device_tokens, host_tokens, disk_tokens: of the resumed prefix's full pages, by the fastest tier that has them.
        host_bytes, disk_bytes: to be moved from there, windows included.
        rebuild: how the windows come about, if they are nowhere.
        may_stay: whether the host part can be read in place.
    """

    resume: int
    num_tokens: int
    device_tokens: int
    host_tokens: int
    disk_tokens: int
    host_bytes: int
    disk_bytes: int
    rebuild: RebuildPlan | None = None
    may_stay: bool = False


class Rate:
    """A running estimate of units per second, from amounts and the time they took."""

    def __init__(self, initial: float, weight: float = 0.1) -> None:
        self.per_second = initial
        self._weight = weight

    def observe(self, amount: float, seconds: float) -> None:
        """Large amounts count more: the estimate is of time per unit, over about the last 1 / weight moves."""
        if amount > 0 and seconds > 0:
            self.per_second = 1 / ((1 - self._weight) / self.per_second + self._weight * seconds / amount)

    def seconds(self, amount: float) -> float:
        return amount / self.per_second


@dataclass
class Planner:
    """Predicts what each option takes, and takes the fastest.

    The rates are starting points for one 8-GPU node and a MiMo-V2.5-Pro; `rates` is corrected by every transfer and every
    prefill that the cache sees. Override `choose`, or forbid actions, for another policy.

    Args:
        host_bytes_per_second, disk_bytes_per_second, prefill_tokens_per_second: initial estimates.
        in_place_slowdown: how much longer attention to host pages takes than copying them once would.
        rebuild_overhead: seconds that a rebuild takes on top of its tokens: narrow launches in every layer.
        deadline: seconds after which a request no longer waits for the store, and goes on by computing.
        rebuild, in_place, load: False forbids the action.
    """

    host_bytes_per_second: float = 50e9
    disk_bytes_per_second: float = 5e9
    prefill_tokens_per_second: float = 28_000.0
    in_place_slowdown: float = 1.5
    rebuild_overhead: float = 0.002
    deadline: float = 2.0
    rebuild: bool = True
    in_place: bool = True
    load: bool = True
    rates: dict[str, Rate] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = {
            "host": Rate(self.host_bytes_per_second),
            "disk": Rate(self.disk_bytes_per_second),
            "prefill": Rate(self.prefill_tokens_per_second),
        }

    def plan(self, situations: Sequence[Situation]) -> Plan:
        options = [o for s in situations for o in self.options(s) if self._allowed(o)]
        return Plan(self.choose(options), tuple(options))

    def choose(self, options: Sequence[Option]) -> Option:
        """The fastest; of equally fast ones the one that reuses most."""
        return min(options, key=lambda o: (o.seconds, -o.resume))

    def options(self, s: Situation) -> list[Option]:
        """The ways to resume at one point: the host part copied, or read in place."""
        rates = self.rates
        load = rates["disk"].seconds(s.disk_bytes)
        copy = rates["host"].seconds(s.host_bytes + s.disk_bytes)
        rest = s.num_tokens - s.resume
        compute = rates["prefill"].seconds(rest)
        steps = []
        if s.device_tokens:
            steps.append(Step(Action.REUSE, s.device_tokens, 0, 0.0))
        if s.disk_bytes:
            steps.append(Step(Action.LOAD, s.disk_tokens, s.disk_bytes, load))
        if s.rebuild is not None:
            seconds = rates["prefill"].seconds(s.rebuild.token_equivalents) + self.rebuild_overhead
            steps.append(Step(Action.REBUILD, s.rebuild.num_tokens, 0, seconds))
            compute += seconds
        last = Step(Action.RECOMPUTE, rest, 0, rates["prefill"].seconds(rest))
        if not s.host_bytes:
            return [Option(s.resume, (*steps, last), load + max(copy, compute), s.rebuild)]
        promote = Step(Action.PROMOTE, s.host_tokens, s.host_bytes, copy)
        found = [Option(s.resume, (*steps, promote, last), load + max(copy, compute), s.rebuild)]
        if s.may_stay and s.host_tokens:
            stay = Step(Action.IN_PLACE, s.host_tokens, s.host_bytes, copy * self.in_place_slowdown)
            found.append(Option(s.resume, (*steps, stay, last), load + compute + stay.seconds, s.rebuild))
        return found

    def _allowed(self, option: Option) -> bool:
        forbidden = {Action.REBUILD: self.rebuild, Action.IN_PLACE: self.in_place, Action.LOAD: self.load}
        return all(allowed for action, allowed in forbidden.items() if action in option.actions)
