"""How long a request may be, and which ids it may hold, by the model that runs it."""

from dataclasses import dataclass

from .scheduler import RequestTooLarge
from .shown import shown
from .validation import LARGEST_INT64, as_count


@dataclass(frozen=True)
class Limits:
    """`vocab_size` token ids and `context` positions; None: no limit is known."""

    vocab_size: int | None
    context: int | None

    @classmethod
    def of(cls, model: object, vocab_size: int | None = None, context_limit: int | None = None) -> "Limits":
        """What the model states, unless given. Raises TypeError, ValueError for what is no positive integer."""
        return cls(
            _stated_or_given(model, "vocab_size", "vocab_size", vocab_size),
            _stated_or_given(model, "max_position_embeddings", "context_limit", context_limit),
        )

    def check(self, name: str, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raises RequestTooLarge; `name` is the prompt's. The last token is generated but not computed on, and needs no
        position."""
        needed = num_prompt_tokens + max_tokens - 1
        owner, most = ("a request", LARGEST_INT64) if self.context is None else ("the model", self.context)
        if needed > most:
            raise RequestTooLarge(
                f"{name}: a prompt of {shown(num_prompt_tokens)} tokens with max_tokens={max_tokens} needs {shown(needed)} "
                f"positions, and {owner} has {most}"
            )


def _stated_or_given(model: object, attribute: str, argument: str, given: object) -> int | None:
    if given is not None:
        return as_count(f"Engine: {argument}", given, or_none=True)
    return as_count(f"Engine: model.{attribute}", getattr(model, attribute, None), or_none=True)
