"""Train a byte-level hybrid sliding-window model on the standard library's source files, on this CPU.

    python examples/tiny_hybrid/train.py --minutes 60

Writes `model.safetensors` (bf16), `config.json` and `training_log.jsonl` beside itself. The weights are written at every
evaluation, so an interrupted run leaves the newest evaluated model behind. Hidden matrices are trained by Muon (Jordan
et al., 2024: orthogonalised momentum), everything else by AdamW.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Sampler, compressor_bits_per_byte, find_corpus, held_out_stream
from model import CONFIG, TinyHybrid
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
TOKENS_PER_STEP = 8192
# Most of the time on short sequences, where a step is cheapest; the end on long ones, so that long prompts are in
# distribution when the model is served.
PHASES = ((0.0, 1024), (0.55, 2048), (0.85, 8192))  # (share of the time budget from which it holds, sequence length)


def initialise(model: TinyHybrid, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        scale = parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= math.sqrt(2 * CONFIG["num_hidden_layers"])
        if name.endswith("lm_head.weight"):
            scale *= 0.5
        torch.nn.init.normal_(parameter, std=scale, generator=generator)


def build_optimizers(model: TinyHybrid) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original")
    adam = torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm up over 50 steps, hold, then fall linearly over the last 60% of the time budget."""
    return min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - progress) / 0.6))


@torch.no_grad()
def bits_per_byte(model: TinyHybrid, stream: torch.Tensor, length: int) -> float:
    """Cross-entropy in bits per predicted token over consecutive sequences of `length`, no context carried across."""
    count = (len(stream) - 1) // length
    total = 0.0
    for i in range(count):
        piece = stream[i * length : (i + 1) * length + 1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(piece[None, :-1])[0]
        total += F.cross_entropy(logits.float(), piece[1:], reduction="sum").item()
    return total / (count * length) / math.log(2)


def save(model: TinyHybrid) -> None:
    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, HERE / "model.safetensors.part", metadata={"format": "pt"})
    (HERE / "model.safetensors.part").replace(HERE / "model.safetensors")
    (HERE / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="wall-clock budget of the training loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-bytes", type=int, default=131072, help="held-out bytes of the evaluations on the way")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    corpus = find_corpus()
    sampler = Sampler(corpus, generator)
    held_out = held_out_stream(corpus)
    model = TinyHybrid()
    initialise(model, generator)
    compiled = torch.compile(model, dynamic=False)  # one compilation per phase; about twice as fast as eager
    optimizers = build_optimizers(model)

    log = (HERE / "training_log.jsonl").open("w", buffering=1)

    def record(**fields: object) -> None:
        log.write(json.dumps(fields) + "\n")
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items()), flush=True)

    record(
        event="start",
        parameters=sum(p.numel() for p in model.parameters()),
        library_files=len(corpus.modules),
        test_files=len(corpus.tests),
        held_out_files=len(corpus.held_out),
        held_out_bytes=len(held_out),
        tokens_per_step=TOKENS_PER_STEP,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )
    start, step, last_eval = time.time(), 0, 0.0
    while (progress := (time.time() - start) / (args.minutes * 60)) < 1:
        length = [n for share, n in PHASES if progress >= share][-1]
        inputs, targets = sampler.batch(TOKENS_PER_STEP // length, length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * learning_rate_factor(step, progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0:
            elapsed = time.time() - start
            record(
                event="step",
                step=step,
                bits=round(loss.item() / math.log(2), 4),
                length=length,
                seconds=round(elapsed, 1),
                tokens_per_second=round(step * TOKENS_PER_STEP / elapsed),
            )
        if time.time() - start - last_eval > 300:
            last_eval = time.time() - start
            bits = bits_per_byte(model, held_out[: args.eval_bytes], 2048)
            record(event="eval", step=step, held_out_bits_per_byte=round(bits, 4), seconds=round(last_eval, 1))
            save(model)
    save(model)
    with torch.no_grad():  # the saved weights are bf16: measure what is shipped
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    record(
        event="final",
        step=step,
        tokens=step * TOKENS_PER_STEP,
        **{f"held_out_bits_per_byte_{n}": round(bits_per_byte(model, held_out, n), 4) for n in (1024, 2048, 8192)},
        **{name: round(value, 4) for name, value in compressor_bits_per_byte(corpus).items()},
        file_bytes=(HERE / "model.safetensors").stat().st_size,
        seconds=round(time.time() - start, 1),
    )


if __name__ == "__main__":
    main()
