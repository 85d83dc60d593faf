"""Small traces of both formats, written to files."""

import gzip
import json
from pathlib import Path


def write(path: Path, rows: list, packed: bool = False) -> Path:
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    text = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(text) if packed else text)
    return path


def mooncake(tokens: int, ids: list[int], timestamp: float = 0) -> dict:
    return {"timestamp": timestamp, "input_length": tokens, "output_length": 5, "hash_ids": ids}


def turn(tokens: int, runs: list[list[int]], think: float = 0.0, api: float = 1.0, **more) -> dict:
    return {"t": 0.0, "type": "n", "in": tokens, "out": 5, "h": runs, "think_time": think, "api_time": api, **more}


def nested(requests: list[dict], tool: int = 0, system: int = 0) -> dict:
    return {"type": "subagent", "t": 0.0, "tool_tokens": tool, "system_tokens": system, "requests": requests}


def session(requests: list[dict], tool: int = 0, system: int = 0, block_size: int = 64) -> dict:
    return {
        "id": "by hand",
        "block_size": block_size,
        "hash_id_scope": "local",
        "tool_tokens": tool,
        "system_tokens": system,
        "requests": requests,
    }


def growing(num_turns: int, blocks_per_turn: int, think: float = 1.0) -> list[dict]:
    """A conversation whose prompts each begin with the one before."""
    return [turn(n * blocks_per_turn * 64 + 10, [[1, n * blocks_per_turn]], think) for n in range(1, num_turns + 1)]
