"""What a caller asks the engine for, before it is a request: foreign values, checked without the engine's turn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .limits import Limits
from .sampler import SamplingParams
from .scheduler import Scheduler
from .validation import as_text, count_tokens, require_kind, token_ids


@dataclass(frozen=True)
class Asked:
    """One prompt with its parameters. `call` is the engine's method, and `index` the prompt's place among several: errors
    name both."""

    call: str
    index: int | None
    request_id: int
    prompt: Sequence[int]
    params: SamplingParams | None
    params_index: int | None
    salt: str

    def checked(self, limits: Limits, scheduler: Scheduler) -> "Asked":
        """The same with values of our own, if it may be a request. To check it again is cheap, and runs no foreign code.

        Raises TypeError, ValueError, and RequestTooLarge for one that could never finish.
        """
        require_kind(self._name("params", self.params_index), self.params, SamplingParams)
        as_text(self._name("salt"), self.salt)
        params = self.params or SamplingParams()
        name = self._name("prompt") if self.index is None else self._name("prompts", self.index)
        count = count_tokens(name, self.prompt)
        limits.check(name, count, params.max_tokens)
        scheduler.check_fits(name, count, params.max_tokens)
        return replace(self, prompt=token_ids(name, self.prompt, count, limits.vocab_size), params=params)

    def _name(self, argument: str, index: int | None = None) -> str:
        return f"Engine.{self.call}: {argument}" + ("" if index is None else f"[{index}]")
