"""Token counts of a request: the three things an API prices, under the names that APIs use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..kvcache import Tier


@dataclass(frozen=True)
class Usage:
    """Prompt tokens, how many of them came from the prefix cache, and generated tokens. Usages add up."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cached_by_tier: Mapping[Tier, int] = field(default_factory=dict)  # by the fastest tier that had them

    def __post_init__(self) -> None:
        if not 0 <= self.cached_tokens <= self.prompt_tokens or self.completion_tokens < 0:
            raise ValueError(f"Usage: needs 0 <= cached_tokens <= prompt_tokens and completion_tokens >= 0, got {self}")

    @property
    def miss_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            {
                tier: self.cached_by_tier.get(tier, 0) + other.cached_by_tier.get(tier, 0)
                for tier in sorted({*self.cached_by_tier, *other.cached_by_tier})
            },
        )

    def to_dict(self) -> dict:
        """The OpenAI-style fields, and DeepSeek's hit and miss fields beside them."""
        details: dict[str, object] = {"cached_tokens": self.cached_tokens}
        if self.cached_by_tier:
            details["cached_tokens_details"] = {t.name.lower(): n for t, n in self.cached_by_tier.items()}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": details,
            "prompt_cache_hit_tokens": self.cached_tokens,
            "prompt_cache_miss_tokens": self.miss_tokens,
        }
