"""Paged KV cache in tiers, whose windowed pools hold windows only. See docs/kvcache.md and docs/kv_tiers.md."""

from .cache import KVCache, LayerPages, LowerTiers
from .intact import Intact, Torn
from .planner import Action, Option, Plan, Planner, Situation, Step
from .pool import CacheFull, PageAccountingError, PagePool
from .prefix_cache import WritePolicy
from .rebuild import RebuildPlan, plan_rebuild
from .sequence import ABSENT, KVSequence, PrefixKey
from .sequence_cache import SequenceCache
from .sizing import pages_for_budget
from .snapshot_policy import SnapshotPolicy
from .spec import GroupSpec
from .stats import CacheStats, PoolStats
from .tier import PageState, Tier
from .window_pages import Reason

__all__ = [
    "ABSENT",
    "Action",
    "CacheFull",
    "CacheStats",
    "GroupSpec",
    "Intact",
    "KVCache",
    "KVSequence",
    "LayerPages",
    "LowerTiers",
    "Option",
    "PageAccountingError",
    "PagePool",
    "PageState",
    "Plan",
    "Planner",
    "PoolStats",
    "PrefixKey",
    "Reason",
    "RebuildPlan",
    "SequenceCache",
    "Situation",
    "SnapshotPolicy",
    "Step",
    "Tier",
    "Torn",
    "WritePolicy",
    "pages_for_budget",
    "plan_rebuild",
]
