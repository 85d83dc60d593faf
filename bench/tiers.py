"""What a hit from host memory costs when loads overlap computing, and when they do not.

    python bench/tiers.py [--rounds N] [--tokens N] [--suffix N] [--json FILE]

A hybrid model with random weights answers prompts whose prefix is cached on the host: layer by layer (a layer waits for its
own pages only), whole (the first layer waits for all pages), and, as the floor, from the device. The order is drawn anew in
every round. Reported are medians over the rounds: time to the first token, time that the model stood waiting for pages, and
what the copies took by themselves. The device is this machine's CPU: copies run in a thread beside the computing ones, so
that they take some of its speed, as they would not on a GPU.
"""

import argparse
import json
import platform
import random
import statistics
import time
from pathlib import Path

import torch

from swa_attn.kvcache import KVCache, LowerTiers, Planner, SnapshotPolicy
from swa_attn.runner import Engine, ModelConfig, SamplingParams
from swa_attn.runner.models import MiMoForCausalLM

PAGE_SIZE = 64
WAYS = ("device", "layer by layer", "whole")
CONFIG = {
    "model_type": "mimo_v2",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 24,
    "hybrid_layer_pattern": [int(i % 6 != 0) for i in range(24)],
    "moe_layer_freq": [0] * 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "sliding_window": 128,
    "sliding_window_size": 128,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5_000_000,
    "swa_rope_theta": 10_000,
    "hidden_act": "silu",
    "layernorm_epsilon": 1e-5,
    "attention_value_scale": 0.707,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "float32",
    "max_position_embeddings": 1 << 20,
}


class MostReuse(Planner):
    """Hits are taken whatever they cost: their cost is what is measured."""

    def choose(self, options):
        return min(options, key=lambda o: (-o.resume, o.seconds))


class Measured:
    """One engine and two long prompts, of which the device holds one."""

    def __init__(self, num_tokens: int, suffix: int) -> None:
        config = ModelConfig.from_dict(CONFIG, mimo_window="size_includes_self")
        model = MiMoForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        pages = (num_tokens + suffix) // PAGE_SIZE + 16
        self.engine = Engine(
            model,
            config.kv_groups(),
            page_size=PAGE_SIZE,
            num_pages={"full": pages, "swa": 64},
            max_tokens_per_step=1024,
            policy=SnapshotPolicy(fixed=()),
            planner=MostReuse(rebuild=False),
            lower=LowerTiers({"full": 4 * pages, "swa": 256}),
        )
        self.mover = self.engine.cache.mover
        self.prompts = [[seed] + [i % 251 for i in range(num_tokens)] for seed in (1, 2)]
        self.suffix = suffix
        self.turn = 0
        for prompt in self.prompts:
            self._ask(prompt)
        self.last = 1

    def run(self, way: str) -> dict[str, float]:
        """One request with a new suffix; returns seconds."""
        index = self.last if way == "device" else 1 - self.last
        wait = self.mover.wait_for_layer
        if way == "whole":
            self.mover.wait_for_layer = lambda _: [wait(layer) for layer in self.engine.cache.layers] and None
        try:
            before = self.mover.waited_seconds
            self.turn += 1
            new = [(self.turn * 7 + i) % 251 for i in range(self.suffix)]
            completion = self._ask(self.prompts[index] + new)
        finally:
            self.mover.wait_for_layer = wait
        self.last = index
        expected = "DEVICE" if way == "device" else "HOST"
        tiers = {t.name: n for t, n in completion.usage.cached_by_tier.items()}
        if max(tiers, key=tiers.get) != expected:
            raise RuntimeError(f"{way}: the hit should have come from {expected}, got {tiers}")
        return {
            "first_token": completion.time_to_first_token,
            "waited": self.mover.waited_seconds - before,
            "hit_tokens": completion.usage.cached_tokens,
        }

    def copy_alone(self) -> float:
        """Seconds that the copies of one prefix take with nothing beside them."""
        cache: KVCache = self.engine.cache
        index = 1 - self.last
        key = cache.key(self.prompts[index] + [0])
        start = time.perf_counter()
        sequence = cache.begin(key)
        for layer in cache.layers:
            cache.mover.wait_for_layer(layer)
        seconds = time.perf_counter() - start
        cache.end(sequence)
        self._settle()
        self.last = index
        return seconds

    def _ask(self, prompt: list[int]):
        completion = self.engine.generate([prompt], SamplingParams(max_tokens=1))[0]
        self._settle()
        return completion

    def _settle(self) -> None:
        while self.engine.cache.num_pending:
            self.engine.cache.poll(timeout=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=8192, help="of the cached prefix")
    parser.add_argument("--suffix", type=int, default=256, help="new tokens of a request")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured = Measured(args.tokens, args.suffix)
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    alone = []
    for _ in range(args.rounds):
        for way in random.sample(WAYS, len(WAYS)):
            samples[way].append(measured.run(way))
        alone.append(measured.copy_alone())
    measured.engine.close()
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tokens": args.tokens,
        "suffix": args.suffix,
        "rounds": args.rounds,
        "copy_alone": statistics.median(alone),
        **{way: {k: statistics.median(s[k] for s in samples[way]) for k in samples[way][0]} for way in WAYS},
    }
    print(f"hit of {args.tokens} tokens, {args.suffix} new ones; copies alone {result['copy_alone'] * 1e3:.1f} ms")
    print("                  first token     waited for pages")
    for way in WAYS:
        print(f"  {way:<14} {result[way]['first_token'] * 1e3:>9.1f} ms {result[way]['waited'] * 1e3:>14.1f} ms")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
