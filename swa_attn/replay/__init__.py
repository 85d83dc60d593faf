"""Replays request traces against the cache's real tree, policies and accounting, without a model. See docs/replay.md."""
