"""What one GPU does with our experts and our training step: `make bench-gpu`, or `python tests/bench/bench_gpu.py --json FILE`.

ceilings  what this card reaches in a large bf16 matrix product and a large copy
parity    output and gradients of every backend in bf16 against the loop in float64, over even and hostile loads; MegaBlocks' own dMoE
          with our weights; trained side by side for some steps
scoring   log-probabilities and held-out loss on the GPU beside the CPU's
resume    a checkpoint written and read on the GPU
layer     one MoE layer forward and backward, TFLOP/s: ours with each backend, and MegaBlocks' own dMoE (mlp_impl 'grouped')
model     whole training steps (Trainer: autocast bf16, float32 masters, fused AdamW): tokens/s, MFU, peak memory

Every line is printed as it is measured. A check that fails makes the exit code 1; a size that does not fit is listed as such.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models.config import ModelConfig
from models.experts import BACKENDS, ExpertWeights, expert_forward
from models.gauntlet.scoring import Scorer
from models.kv_cache import KVCache
from models.moe import MoE, count_tokens, load_balancing_loss, route
from models.train_loop import LoopConfig, PackedSequences, Trainer, new_model

PEAK_TFLOPS = 989.0  # dense bf16 of the H100 SXM and the H200, by NVIDIA's data sheet
BF16_TOLERANCE = 0.02  # relative error (norms) against float64 of three chained bf16 products
N_EXPERTS, TOP_K = 16, 4
found: dict[str, Any] = {"failed": []}


def say(part: str, **values: Any) -> None:
    found.setdefault(part, []).append(values)
    print(f"{part:9}" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)


def check(name: str, error: float, limit: float) -> None:
    """A check: ``error`` (not NaN) is below ``limit``."""
    if not error <= limit:
        found["failed"].append(name)
    say("parity", what=name, error=float(error), limit=limit, ok=error <= limit)


def seconds_of(call: Any, *, repeats: int) -> float:
    """Median seconds of ``call`` by CUDA events, after warming up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def ceilings() -> None:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = seconds_of(lambda: a @ b, repeats=10)
    big = torch.randn(2**30, device="cuda")
    other = torch.empty_like(big)
    copy = seconds_of(lambda: other.copy_(big), repeats=5)
    say("ceilings", matmul_tflops=2 * 8192**3 / product / 1e12, copy_tb_per_s=2 * big.nbytes / copy / 1e12)


def _loads(n: int) -> dict[str, torch.Tensor]:
    """Router logits of every kind of load."""
    starved, four = torch.randn(n, N_EXPERTS), torch.randn(n, N_EXPERTS)
    starved[:, [0, 7, 15]] -= 1e4
    four[:, 4:] -= 1e4
    return {"even": torch.randn(n, N_EXPERTS), "starved": starved, "four experts": four, "one token": torch.randn(1, N_EXPERTS)}


def _run_experts(backend: str, device: str, dtype: torch.dtype, leaves: dict[str, torch.Tensor], up: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {k: t.to(device, torch.promote_types(dtype, torch.float32) if k == "logits" else dtype).requires_grad_() for k, t in leaves.items()}
    _, gates, indices = route(leaves["logits"], TOP_K)
    weights = ExpertWeights(leaves["w1"], leaves["v1"], leaves["w2"], N_EXPERTS)
    out = expert_forward(backend, leaves["x"], weights, indices_NK=indices, gates_NK=gates, tokens_per_expert_E=count_tokens(indices, N_EXPERTS))
    (out * up.to(device, dtype)).sum().backward()
    return {"out": out.detach().double().cpu(), **{k: t.grad.double().cpu() for k, t in leaves.items()}}


def parity(backends: list[str]) -> None:
    d, f = 512, 896
    for load, logits in _loads(777).items():
        n = len(logits)
        leaves = {"x": torch.randn(n, d), "logits": logits, **{k: torch.randn(N_EXPERTS * f, d) * d**-0.5 for k in ("w1", "v1", "w2")}}
        # Not the logits: rounded, some are equal, and a GPU breaks ties otherwise than a CPU.
        leaves = {k: t if k == "logits" else t.bfloat16().float() for k, t in leaves.items()}
        up = torch.randn(n, d).bfloat16()
        exact = _run_experts("reference", "cpu", torch.float64, leaves, up)
        for backend in backends:
            ours = _run_experts(backend, "cuda", torch.bfloat16, leaves, up)
            errors = {k: float((ours[k] - e).norm() / e.norm().clamp(min=1e-12)) for k, e in exact.items()}
            check(f"{backend}, {load}: worst of output and gradients against float64", max(errors.values()), BF16_TOLERANCE)


def _dmoe(d: int, f: int) -> Any:
    """MegaBlocks' own layer with DBRX's settings, in bf16; (layer, its arguments)."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    arguments = Arguments(
        hidden_size=d, ffn_hidden_size=f, num_layers=1, moe_num_experts=N_EXPERTS, moe_top_k=TOP_K, moe_normalize_expert_weights=1,
        moe_loss_weight=0.05, activation_fn=F.silu, mlp_type="glu", mlp_impl="grouped", bias=False, return_bias=False, fp16=False, bf16=True,
        device=torch.device("cuda"), moe_jitter_eps=None,
    )  # fmt: skip
    return dMoE(arguments), arguments


def _dmoe_step(layer: Any, arguments: Any, x: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from megablocks.layers.moe import batched_load_balancing_loss, clear_load_balancing_loss

    clear_load_balancing_loss()
    out = layer(x)
    balance = batched_load_balancing_loss(arguments)
    ((out * up).sum() + balance).backward()
    return out, balance


def _our_step(layer: MoE, x: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, stats = layer(x)
    balance = load_balancing_loss(scores_per_layer=[stats.scores_NE], tokens_per_expert_per_layer=[stats.tokens_per_expert_E], top_k=TOP_K, weight=0.05)
    ((out * up).sum() + balance).backward()
    return out, balance


def _layer(d: int, f: int, backend: str) -> MoE:
    config = ModelConfig(d_model=d, n_heads=d // 128, n_kv_heads=1, n_layers=1, ffn_hidden=f, vocab_size=8, max_seq_len=8)
    with torch.device("cuda"):
        layer = MoE(config, backend)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return layer.bfloat16()


def parity_with_dmoe(backends: list[str]) -> None:
    d, f = 512, 896
    theirs, arguments = _dmoe(d, f)
    state = dict(theirs.named_parameters())
    x = torch.randn(4, 256, d, device="cuda").bfloat16()
    up = torch.randn_like(x)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.05)
    leaf = x.clone().requires_grad_()
    out, balance = _dmoe_step(theirs, arguments, leaf, up)
    for backend in backends:
        ours = _layer(d, f, backend)
        ours.load_state_dict({k: v.detach() for k, v in state.items()})
        mine = x.clone().requires_grad_()
        out_2, balance_2 = _our_step(ours, mine, up)
        pairs = [(out_2, out), (mine.grad, leaf.grad), *((p.grad, state[name].grad) for name, p in ours.named_parameters())]
        # A token at the border of two experts can go the other way: MegaBlocks' router rounds its logits to bf16, ours does not.
        near = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]
        check(f"{backend}: MegaBlocks' dMoE with the same weights (worst of output and gradients)", max(near), 0.1)
        check(f"{backend}: load-balancing loss of dMoE, relative", abs(float(balance_2 / balance) - 1), 0.01)


def _synthetic(config: ModelConfig, n: int, seed: int = 7) -> PackedSequences:
    """Sequences of a few documents each; token i+1 follows from token i most of the time, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (n, config.max_seq_len), dtype=np.int32)
    for t in range(1, config.max_seq_len):
        follows = rng.random(n) < 0.7
        tokens[follows, t] = (tokens[follows, t - 1] * 31 + 7) % config.vocab_size
    boundaries = [np.sort(np.r_[0, rng.choice(np.arange(1, config.max_seq_len), 3, replace=False)]) for _ in range(n)]
    return PackedSequences(tokens, boundaries, np.full(n, config.max_seq_len))


def parity_of_documents() -> None:
    """Packed documents through FlashAttention on the GPU against a mask on the CPU in float32: loss and gradients, and nothing leaks."""
    config = ModelConfig(d_model=256, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=448, vocab_size=512, max_seq_len=256, init="by_width")
    exact, ours = new_model(config, seed=1, experts_backend="reference"), new_model(config, seed=1).cuda()
    tokens, ids = _synthetic(config, 8).batch(np.arange(8))
    ids[0, 200:] = -1  # padding
    expected = exact.forward_loss(tokens, ids)
    expected.loss.backward()
    with torch.autocast("cuda", torch.bfloat16):
        got = ours.forward_loss(tokens.cuda(), ids.cuda())
        changed = tokens.clone()
        changed[:, 0] = (changed[:, 0] + 1) % config.vocab_size  # the first token of the first document
        seen = [ours.hidden(t.cuda(), document_ids_BT=ids.cuda())[(ids > 0).cuda()] for t in (tokens, changed)]
    got.loss.backward()
    check("packed documents: loss on the GPU against the CPU", abs(float(got.loss.detach() / expected.loss.detach()) - 1), 0.005)
    pairs = zip(ours.parameters(), exact.parameters(), strict=True)
    check("packed documents: worst gradient against the CPU", max(float((a.grad.cpu() - b.grad).norm() / b.grad.norm()) for a, b in pairs), 0.1)
    # Not bit for bit: the experts' row counts move with the changed document.
    check("packed documents: what another document sees of a changed token", float((seen[0] - seen[1]).abs().max()), 0.05)


def resume(folder: Path) -> None:
    """A checkpoint written and read on the GPU continues where it was."""
    config = ModelConfig(d_model=512, n_heads=4, n_kv_heads=2, n_layers=4, ffn_hidden=896, vocab_size=4096, max_seq_len=512, init="by_width")
    data, loop = _synthetic(config, 64), LoopConfig(steps=12, batch_sequences=8, learning_rate=1e-3)
    whole, cut = (Trainer(new_model(config, seed=seed).cuda(), loop, data) for seed in (1, 2))
    for _ in range(6):
        whole.step()
    cut.load(whole.save(folder).path)
    pairs = [(whole.step().loss, cut.step().loss) for _ in range(6)]
    check("six steps after a checkpoint, read into another model", max(abs(a / b - 1) for a, b in pairs), 0.002)


def scoring(backends: list[str]) -> None:
    """What the Gauntlet reads on the GPU, in float32: log-probabilities through the prefix tree and its cache, and the held-out loss."""
    config = ModelConfig(d_model=512, n_heads=4, n_kv_heads=2, n_layers=4, ffn_hidden=896, vocab_size=4096, max_seq_len=512, init="by_width")
    rng = np.random.default_rng(3)
    shared = [tuple(rng.integers(0, 4096, n).tolist()) for n in (1, 40, 300)]
    pairs = [(s + tuple(rng.integers(0, 4096, 30).tolist()), tuple(rng.integers(0, 4096, n).tolist())) for s in shared for n in (1, 2, 7, 20)]
    sums: dict[str, np.ndarray] = {}
    data = _synthetic(config, 16)
    held_out = {}
    for device, backend, batch in (("cpu", "grouped_mm", 16384), *(("cuda", b, 16384) for b in backends), ("cuda", "grouped_mm", 256)):
        model = new_model(config, seed=1, experts_backend=backend).to(device)
        scores = Scorer(model.eval(), None, max_seq_len=512, batch_tokens=batch, cache_type=KVCache).continuation_scores(pairs)
        sums[f"{device} {backend} {batch}"] = np.array([scores[p].sum_logprob for p in pairs])
        held_out[f"{device} {backend} {batch}"] = Trainer(model, LoopConfig(steps=1, batch_sequences=4, learning_rate=0.1), data).held_out_loss(data, 16)[0]
    exact = sums.pop("cpu grouped_mm 16384")
    for name, found_sums in sums.items():
        limit = 0.5 if "megablocks" in name else 0.005  # its products are in bf16 whatever the model is in
        check(f"log-probabilities of up to 20 tokens, {name}, against the CPU, nats", float(np.abs(found_sums - exact).max()), limit)
        check(f"held-out loss, {name}, against the CPU, nats", abs(held_out[name] - held_out["cpu grouped_mm 16384"]), limit / 10)


def curves(backends: list[str]) -> None:
    config = ModelConfig(d_model=512, n_heads=4, n_kv_heads=2, n_layers=4, ffn_hidden=896, vocab_size=4096, max_seq_len=512, init="by_width")
    data = _synthetic(config, 256)
    losses = {}
    for backend in backends:
        trainer = Trainer(new_model(config, seed=1, experts_backend=backend).cuda(), LoopConfig(steps=40, batch_sequences=16, learning_rate=1e-3), data)
        losses[backend] = [trainer.step().loss for _ in range(40)]
        free()
    first = losses["reference"]
    for backend, curve in losses.items():
        say("curve", backend=backend, first=curve[0], last=curve[-1])
        check(f"{backend}: loss after 40 steps against the loop's, relative", abs(curve[-1] / first[-1] - 1), 0.02)
    check("the loss falls", first[-1] / first[0], 0.95)


def layers(backends: list[str]) -> None:
    for d in (2048, 4096):
        f = d * 7 // 4  # DBRX's proportion
        for n in (8192, 32768):
            x = torch.randn(n // 2048, 2048, d, device="cuda").bfloat16().requires_grad_()
            up = torch.randn_like(x)
            flops = 18.0 * n * TOP_K * d * f
            steps = {f"ours, {b}": (_layer(d, f, b), None) for b in backends}
            if "megablocks" in backends:
                steps["MegaBlocks dMoE"] = _dmoe(d, f)
            for name, (layer, arguments) in steps.items():
                free()

                def once(layer: Any = layer, arguments: Any = arguments, x: torch.Tensor = x, up: torch.Tensor = up) -> None:
                    layer.zero_grad(set_to_none=True)
                    x.grad = None
                    _dmoe_step(layer, arguments, x, up) if arguments else _our_step(layer, x, up)

                taken = seconds_of(once, repeats=10)
                gib = torch.cuda.max_memory_allocated() / 2**30
                say("layer", d=d, f=f, tokens=n, ms=taken * 1e3, tflops=flops / taken / 1e12, gib=gib, what=name)
            del steps, x, up
            free()


@dataclass(frozen=True)
class Run:
    """Whole training steps of recipe ``model`` on ``tokens`` tokens, at most ``at_once`` of them in one pass."""

    model: str
    tokens: int
    backend: str = "grouped_mm"
    at_once: int = 32768
    compile: bool = False
    activation_checkpointing: bool = False


RUNS = (
    *(Run("h200", tokens) for tokens in (8192, 16384, 32768)),
    Run("h200", 32768, backend="megablocks"),
    Run("h200", 32768, activation_checkpointing=True),
    Run("h200", 32768, compile=True),
    Run("h200", 32768, backend="megablocks", compile=True),
    Run("h200", 131072, at_once=16384, compile=True),
    Run("h200", 131072, at_once=65536, compile=True, activation_checkpointing=True),
    Run("h200_dense", 32768),
    Run("h200_dense", 32768, compile=True),
    Run("small_gpu", 16384),
    Run("small_gpu", 16384, compile=True),
)


def whole_models(runs: Sequence[Run], profile: Path | None) -> None:
    from jobs.recipes import RECIPES

    for run in runs:
        free()
        try:
            _model_steps(run, RECIPES[run.model]().model, profile)
        except torch.OutOfMemoryError:
            say("model", **asdict(run), result="does not fit")
        except Exception as error:  # the others are measured all the same
            found["failed"].append(f"{run}: {error}")
            say("model", **asdict(run), result=f"{type(error).__name__}: {str(error)[:300]}")
        torch.compiler.reset()


def _model_steps(run: Run, config: ModelConfig, profile: Path | None) -> None:
    batch = run.tokens // config.max_seq_len
    with torch.device("cuda"):
        model = new_model(config, seed=1, experts_backend=run.backend)
    loop = LoopConfig(
        steps=100, batch_sequences=batch, learning_rate=1e-4, micro_batch_sequences=run.at_once // config.max_seq_len, compile=run.compile,
        activation_checkpointing=run.activation_checkpointing,
    )  # fmt: skip
    trainer = Trainer(model, loop, _synthetic(config, 2 * batch))
    for _ in range(3):
        trainer.step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    n_steps = 8 if run.tokens <= run.at_once else 3
    losses = [trainer.step().loss for _ in range(n_steps)]
    torch.cuda.synchronize()
    taken = (time.perf_counter() - started) / n_steps
    rate = run.tokens / taken
    say(
        "model", **asdict(run), ms=taken * 1e3, tokens_per_s=rate, mfu=rate * config.flops_per_token / (PEAK_TFLOPS * 1e12),
        gib=torch.cuda.max_memory_allocated() / 2**30, retries=torch.cuda.memory_stats()["num_alloc_retries"], loss=losses[-1],
    )  # fmt: skip
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as profiler:
            trainer.step()
            torch.cuda.synchronize()
        with profile.open("a") as file:
            file.write(f"\n{run}\n" + profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="ceilings,parity,scoring,resume,layer,model")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, help="append a table of kernels per whole-model run")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu needs an NVIDIA GPU that torch can see; nothing was measured.", file=sys.stderr)
        return 2
    backends, parts = asked.backends.split(","), asked.parts.split(",")
    torch.manual_seed(1)
    found["machine"] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    print(found["machine"], flush=True)
    todo = {
        "ceilings": ceilings,
        "parity": lambda: (parity(backends), "megablocks" in backends and parity_with_dmoe(backends), parity_of_documents(), curves(backends)),
        "scoring": lambda: scoring(backends),
        "resume": lambda: resume(Path(tempfile.mkdtemp())),
        "layer": lambda: layers(backends),
        "model": lambda: whole_models([run for run in RUNS if run.backend in backends], asked.profile),
    }
    for part in parts:
        started = time.perf_counter()
        try:
            todo[part]()
        except Exception as error:  # what was measured before it counts
            found["failed"].append(f"{part}: {type(error).__name__}: {error}")
            print(f"{part} stopped: {type(error).__name__}: {error}", flush=True)
        free()
        print(f"({part}: {time.perf_counter() - started:.0f} s)", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    print(f"{len(found['failed'])} failed: {found['failed']}" if found["failed"] else "every check passed")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
