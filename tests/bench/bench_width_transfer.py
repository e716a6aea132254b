"""Does the best learning rate stay where it is when the model gets wider? Ours at three widths with and without ModelConfig.base_width.

    PYTHONPATH=. python tests/bench/bench_width_transfer.py [out.json]

Bytes of Python's own standard library, no download. Seconds to half a minute per run on one core; prints the mean training loss of the last 30
steps per width and learning rate. Its result is in infra/decisions/0016-training-loop.md.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch

from models.config import ModelConfig
from models.loop_config import LoopConfig
from models.packed_sequences import PackedSequences
from models.train_loop import Trainer, new_model

WIDTHS, BASE = (64, 128, 256), 64
RATES = tuple(2.0**-n for n in (11, 10, 9, 8, 7, 6, 5))
STEPS, BATCH, SEQ_LEN = 200, 8, 64


def standard_library() -> PackedSequences:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
    n = min(STEPS * BATCH, len(text) // SEQ_LEN)
    return PackedSequences(text[: n * SEQ_LEN].reshape(n, SEQ_LEN), [[0]] * n, np.full(n, SEQ_LEN))


def final_loss(data: PackedSequences, width: int, rate: float, base_width: int) -> float:
    """Mean loss (nats per byte) of the last 30 of ``STEPS`` steps, infinite when it diverged."""
    model = ModelConfig(
        d_model=width, n_heads=width // 32, n_kv_heads=width // 32, n_layers=2, ffn_hidden=width, vocab_size=256, max_seq_len=SEQ_LEN, n_experts=8, top_k=2,
        init="by_width", base_width=base_width,
    )  # fmt: skip
    loop = LoopConfig(steps=STEPS, batch_sequences=BATCH, learning_rate=rate, precision="fp32")
    trainer = Trainer(new_model(model, seed=1), loop, data)
    try:
        return float(np.mean([trainer.step().loss for _ in range(STEPS)][-30:]))
    except FloatingPointError:
        return float("inf")


def main(out: Path | None) -> None:
    data, found = standard_library(), {}
    for base_width in (0, BASE):
        for width in WIDTHS if base_width == 0 else WIDTHS[1:]:  # at its own width the rule changes nothing
            losses = {rate: final_loss(data, width, rate, base_width) for rate in RATES}
            best = min(losses, key=losses.__getitem__)
            found[f"base_width {base_width}, width {width}"] = {"best": best, **{str(rate): loss for rate, loss in losses.items()}}
            print(f"base_width {base_width:3d} width {width:3d}:", "  ".join(f"{r:.4f} {x:.3f}" for r, x in losses.items()), f"  best {best:.4f}", flush=True)
            if out:
                out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
