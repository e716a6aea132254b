"""make bench-forecast: how true forecasts of our own CPU recipes come out, at 30 times and more the compute of all their proxies together.

For every target: proxies are planned for a thirtieth of its training (jobs/proxies.py), stage forecast trains them and registers loss, seconds and
dollars, then stage train trains the target on the same sequences. Every target is listed, misses included, beside the naive forecast (the best proxy's loss,
its speed per FLOP). Targets differ in shape (experts, depth, width), length and data (source code, documentation, both: the text of `moeline sample-data`,
without copies, but not cleaned). Asserts only that all were forecast before they were trained, and at that distance.

BENCH_FORECAST_QUICK=1: models of a few hundred thousand parameters, 600,000 tokens, the first 3 targets: minutes. Without: tiny's shape, 4 million
tokens, all targets: hours on two cores. BENCH_FORECAST_TOKENS and BENCH_FORECAST_TARGETS set both otherwise. Killed and started again it keeps what was
finished (build/bench_forecast.json); what another setting or other code of the stages gave is kept apart by its key.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import training_parts as parts

from jobs import proxies, recipes, sample_data
from jobs.config import ForecastConfig, SuiteConfig, TrainConfig
from jobs.contract import canonical, config_hash, is_held_out
from jobs.services.results import write_whole
from jobs.sizing import training_flops
from jobs.stages import forecast, pack, train
from models.config import ModelConfig

OUT = Path(__file__).resolve().parents[2] / "build" / "bench_forecast.json"
QUICK = bool(int(os.environ.get("BENCH_FORECAST_QUICK", "0")))
TOKENS = int(os.environ.get("BENCH_FORECAST_TOKENS", "600000" if QUICK else "4000000"))
TARGETS = int(os.environ.get("BENCH_FORECAST_TARGETS", "3" if QUICK else "8"))
TIMES = 30  # the target's training FLOPs over those of all its proxies, at least
SUITE = SuiteConfig(own_data_tasks=(), symbolic_tasks=("brackets", "arithmetic"), items_per_task=24)
DATA = {"both": ("python-code", "python-docs"), "code": ("python-code",), "docs": ("python-docs",)}
METRICS = ("loss", "wall_seconds", "cost_usd")


def base() -> TrainConfig:
    if not QUICK:
        return replace(recipes.load("tiny").train, tokens=TOKENS, held_out_sequences=128)
    model = ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=64, vocab_size=1024, max_seq_len=128, init="by_width")
    return TrainConfig(model=model, tokens=TOKENS, batch_sequences=4, precision="fp32", checkpoint_every_steps=500, held_out_sequences=128)


def targets() -> dict[str, tuple[TrainConfig, str]]:
    """(training, data) by name, as different as two cores allow."""
    train = base()
    m = train.model

    def other(**changes: Any) -> TrainConfig:
        return replace(train, model=replace(m, **changes))

    found = {
        "recipe": (train, "both"),
        "recipe, code": (train, "code"),
        "dense twin, docs": (other(n_experts=1, top_k=1, ffn_hidden=m.top_k * m.ffn_hidden, moe_loss_weight=0.0), "docs"),
        "twice as deep": (other(n_layers=2 * m.n_layers), "both"),
        "half wider, code": (other(d_model=m.d_model * 3 // 2, n_heads=m.n_heads * 3 // 2, ffn_hidden=m.ffn_hidden * 3 // 2), "code"),
        "8 experts, top-2, docs": (other(n_experts=8, top_k=2), "docs"),
        "twice as long": (replace(train, tokens=2 * TOKENS), "both"),
        "dense twin": (other(n_experts=1, top_k=1, ffn_hidden=m.top_k * m.ffn_hidden, moe_loss_weight=0.0), "both"),
    }
    return dict(list(found.items())[:TARGETS])


def texts() -> list[tuple[str, str, str]]:
    """(uri, source, text), enough for the longest target on documentation alone where the machine has it. As after stage deduplicate, roughly: what
    shares half of its 8-word passages with earlier documents (licence texts, vendored copies) is left out; else the held-out loss measures memory."""
    listed, seen, found = sorted(set(sample_data._candidates())), set(), []
    for source, uri, _, text in sample_data._documents(listed, max(10 * TOKENS, 20_000_000)):
        words = text.split()
        passages = {h for i in range(len(words) - 7) if (h := zlib.crc32(" ".join(words[i : i + 8]).encode())) % 4 == 0}
        if len(passages & seen) * 2 <= len(passages):
            found.append((uri, source, text))
        seen |= passages
    return found


def sequences(folder: Path, documents: list[tuple[str, str, str]], content: bytes, seq_len: int, sources: tuple[str, ...]) -> ds.Dataset:
    """The documents of ``sources`` as the table ``sequences`` would hold them, packed by stage pack's own packer."""

    def rows() -> Iterator[dict[str, Any]]:
        tokenizer = pack.load_tokenizer(content)
        for number, split in enumerate(("train", "held_out")):
            packer = pack.Packer(seq_len)
            chosen = [(uri, source, text) for uri, source, text in documents if source in sources and is_held_out(uri) == (split == "held_out")]
            ids = pack._encoded(tokenizer, [text for _, _, text in chosen])
            made = [s for (uri, source, _), tokens in zip(chosen, ids, strict=True) for s in packer.add(uri, source, np.asarray(tokens))]
            for place, sequence in enumerate([*made, *packer.flush()]):
                yield sequence | {"sequence_id": (number << 62) | place, "split": split, "tokenizer_id": pack.tokenizer_id(content)}

    table = pa.Table.from_batches([pack._rows(list(rows()))])
    table = table.append_column("interval", pa.array(["2026-11-01"] * len(table)))
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet")
    return ds.dataset(folder / "part-0.parquet")


def one(tools: parts.TrainingTools, config: TrainConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """Forecast, then train: what was said and what came."""
    chosen = tuple(proxies.planned(config, 1 / TIMES)[1])
    began = time.monotonic()
    said = forecast.run(ForecastConfig(target=config, proxies=chosen, suite=SUITE, budget_usd=1e6), inputs, tools)
    forecasting = time.monotonic() - began
    rows = {row["metric"]: row for row in said.tables["forecasts"].to_pylist()}
    began, begun_at = time.monotonic(), time.time()
    reached = train.run(config, inputs, tools).metrics
    seconds = time.monotonic() - began
    outcome = {"loss": reached["held_out_loss"], "wall_seconds": seconds, "cost_usd": tools.stage_price("train", seconds)}
    return {
        "metrics": {m: {**{k: rows[m][k] for k in ("predicted", "low", "high", "naive")}, "outcome": outcome[m]} for m in METRICS},
        "times_all": training_flops(config) / sum(map(training_flops, chosen)), "times_largest": training_flops(config) / max(map(training_flops, chosen)),
        "proxies": [{"heads": p.model.n_heads, "steps": p.steps} for p in chosen], "law": json.loads(rows["loss"]["law"]),
        "content_hash": rows["loss"]["content_hash"], "registered_before": rows["loss"]["registered_at"].timestamp() < begun_at,
        "resumed": bool(reached["resumed_from_step"]) or bool(said.metrics["proxies_reused"]), "forecast_seconds": forecasting, "config": canonical(config),
        "epochs": reached["epochs"],
    }  # fmt: skip


def report(found: dict[str, dict[str, Any]]) -> str:
    def off(row: dict[str, float], which: str) -> str:
        return f"{100 * (row[which] / row['outcome'] - 1):+.1f}"

    lines = ["", f"{'target':<24}{'x all':>6}{'x top':>6}  {'loss (95 %)':<22}{'came':>7}{'off %':>7} {'inside':<7}{'naive':>7}{'off %':>7}"
             f"   {'s (95 %)':<20}{'came':>7}{'off %':>7} {'naive %':>8}   {'$':>7}{'came':>8}"]  # fmt: skip
    for name, each in found.items():
        loss, wall, cost = (each["metrics"][m] for m in METRICS)
        inside = "yes" if loss["low"] <= loss["outcome"] <= loss["high"] else "NO"
        interval, span = (f"{r['predicted']:.{n}f} ({r['low']:.{n}f}-{r['high']:.{n}f})" for r, n in ((loss, 3), (wall, 0)))
        lines.append(
            f"{name:<24}{each['times_all']:6.0f}{each['times_largest']:6.0f}  {interval:<22}{loss['outcome']:7.3f}{off(loss, 'predicted'):>7} {inside:<7}"
            f"{loss['naive']:7.3f}{off(loss, 'naive'):>7}   {span:<20}{wall['outcome']:7.0f}{off(wall, 'predicted'):>7} {off(wall, 'naive'):>8}   "
            f"{cost['predicted']:7.4f}{cost['outcome']:8.4f}{' (resumed: its seconds are not comparable)' if each['resumed'] else ''}"
        )
    for metric in METRICS:
        rows = [e["metrics"][metric] for e in found.values() if metric == "loss" or not e["resumed"]]
        if rows:
            miss, naive = (np.abs([r[which] / r["outcome"] - 1 for r in rows]) for which in ("predicted", "naive"))
            held = sum(r["low"] <= r["outcome"] <= r["high"] for r in rows)
            lines.append(f"{metric}: mean miss {miss.mean():.1%}, largest {miss.max():.1%}, naive {naive.mean():.1%}; {held} of {len(rows)} inside")
    return "\n".join(lines)


@pytest.mark.timeout(0)
def test_forecasts_come_true(tmp_path):
    wanted, documents = targets(), texts()
    size, read = base().model, [len(documents), sum(len(text) for _, _, text in documents)]
    kept = json.loads(OUT.read_text()) if OUT.is_file() else {}
    content = pack.train_tokenizer((text for _, _, text in documents[::3]), size.vocab_size)
    datasets: dict[str, ds.Dataset] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, (config, data) in wanted.items():
        key = config_hash([canonical(config), data, read, TIMES, forecast.REVISION, train.REVISION])
        if key in kept:
            found[name] = kept[key]
            continue
        tools = parts.TrainingTools(tmp_path / "home", run_key=hashlib.sha256(name.encode()).hexdigest()[:32], recipe=name)
        tokenizer = Path(tools.artifact_dir(f"tokenizers/{pack.tokenizer_id(content)}")) / "tokenizer.json"
        tokenizer.write_bytes(content)
        if data not in datasets:
            datasets[data] = sequences(tmp_path / data, documents, content, size.max_seq_len, DATA[data])
        found[name] = kept[key] = one(tools, config, {"sequences": datasets[data], "benchmark_items": None})
        write_whole(OUT, json.dumps(kept, indent=1).encode())
        print(report({name: found[name]}), flush=True)
    print(f"\n{'quick: ' if QUICK else ''}{TOKENS:,} tokens, proxies for 1/{TIMES} of each training", report(found), sep="")
    assert all(found[name]["registered_before"] and found[name]["times_all"] >= TIMES for name in wanted)
