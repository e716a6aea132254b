"""A registered model in a home of its own: small stages in Arrow up to a real checkpoint, then the real register stage with MLflow's own database.

Every name a stranger chooses (source, licence, benchmark, category, subset) is HOSTILE or holds it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arrow_stages
import builds
import pytest
from formula_model import tokenizer_json

from jobs import recipes, run
from jobs.config import TrainConfig
from jobs.contract import StageOutput, canonical
from jobs.environment import Environment
from jobs.services import results
from models.config import ModelConfig

DAYS = ("2026-11-01", "2026-11-02")
HOSTILE = "<img src=x onerror=alert(1)>`|[x](javascript:alert(2))\"' https:--evil.example"  # a folder's name holds no slash
LICENCE = "MIT\n---\n<script>alert(3)</script>\\|`` https://evil.example a@evil.example"
MODEL = ModelConfig(d_model=32, n_heads=2, n_kv_heads=1, n_layers=2, ffn_hidden=32, vocab_size=320, max_seq_len=32, n_experts=4, top_k=2)
CONFIG = TrainConfig(model=MODEL, tokens=10_000, batch_sequences=4, experts_backend="reference")
TRAINED = {
    "steps": 2, "tokens": 256, "epochs": 0.5, "corpus_tokens": 512, "loss": 5.0, "held_out_loss": 4.5, "unigram_loss": 5.5, "flops": 1e9, "mfu": None,
    "params_total": MODEL.params_total, "params_active": MODEL.params_active, "tokens_by_source": {HOSTILE: 200, "prose": 56},
    "epochs_by_source": {HOSTILE: 0.5, "prose": 0.25}, "tokenizer_id": "bytes",
}  # fmt: skip
VERDICTS = {"proper": 3, "near_miss": 0, "wrong": 2}
RECIPE = recipes.load("smoke")


def _train(config: Any, inputs: Any, tools: Any) -> StageOutput:
    from models import checkpoint
    from models.transformer import Transformer

    made = arrow_stages._train(dataclasses.replace(CONFIG, seed=config.seed), inputs, tools)
    import torch

    torch.manual_seed(config.seed)
    parent = Path(tools.artifact_dir(f"checkpoints/{tools.run_key}"))
    folder, sha256 = checkpoint.write(parent, step=2, tensors={"model": Transformer(MODEL).state_dict()}, state={"step": 2})
    tokenizer = Path(tools.artifact_dir("tokenizers/bytes")) / "tokenizer.json"
    tokenizer.write_bytes(tokenizer_json())
    row = made.tables["checkpoints"].to_pylist()[0]
    row |= {"uri": f"checkpoints/{tools.run_key}/{folder.name}", "sha256": sha256, "config": json.dumps(canonical(CONFIG))}
    return StageOutput({"checkpoints": arrow_stages.table("checkpoints", [row])}, TRAINED)


def _forecast(config: Any, inputs: Any, tools: Any) -> StageOutput:
    said = {"loss": (4.4, 4.2, 4.6, 5.0), "accuracy": (0.9, 0.8, 1.0, None), "cost_usd": (1.0, 0.5, 2.0, None), "wall_seconds": (9.0, 1.0, 20.0, None)}
    rows = builds.forecast_rows(said, "f" * 64)
    return StageOutput({"forecasts": arrow_stages.table("forecasts", rows)}, {"decision": "go", "content_hash": "f" * 64})


def _evaluate(config: Any, inputs: Any, tools: Any) -> StageOutput:
    answers = arrow_stages._evaluate(config, inputs, tools)
    common = {"model": "m", "shots": 3, "n": 5, "metric": "accuracy", "accuracy": 0.6, "stderr": 0.0219, "chance": 0.25, "best_constant": 0.3, "score": 0.43,
              "n_contaminated": 0, "mode": "fixed"}  # fmt: skip
    rows = [
        {**common, "benchmark": "**", "category": "average", "accuracy": 0.55}, {**common, "benchmark": "*", "category": HOSTILE},
        {**common, "benchmark": HOSTILE, "category": HOSTILE, "accuracy_clean": 0.5}, {**common, "benchmark": "next_line", "category": "own", "accuracy": 0.0},
    ]  # fmt: skip
    return StageOutput({"scores": arrow_stages.table("scores", rows), "responses": answers.tables["responses"]})


def _review(config: Any, inputs: Any, tools: Any) -> StageOutput:
    reviewed = arrow_stages._review(config, inputs, tools)
    group = reviewed.tables["failure_groups"].to_pylist()[0]
    group |= {"benchmark": HOSTILE, "subset": HOSTILE, "sources": json.dumps([{"source": HOSTILE, "share": 0.75}]), "words": ["secret-word"]}
    failed = {"benchmark": HOSTILE, "n": 5, "n_failed": 2, "verdicts": json.dumps(VERDICTS), "summary": "secret-summary", "nearest_sources": "[]"}
    return StageOutput(
        {"verdicts": reviewed.tables["verdicts"], "failures": arrow_stages.table("failures", [failed]),
         "failure_groups": arrow_stages.table("failure_groups", [group])}, {"key_suspects": 1},
    )  # fmt: skip


def module(stage: str) -> Any:
    """Stages of arrow_stages, with these instead; register is the real one."""
    import importlib

    if stage == "register":
        return importlib.import_module("jobs.stages.register")
    if stage in _RUN:
        real = importlib.import_module(f"jobs.stages.{stage}")
        return SimpleNamespace(
            __name__=real.__name__, ENGINE="arrow", READS=real.READS, WRITES=real.WRITES, REVISION=real.REVISION, run=_RUN[stage], UNMOVED=()
        )
    return arrow_stages.module(stage)


_RUN = {"train": _train, "forecast": _forecast, "evaluate": _evaluate, "review": _review}


def patched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "stage_module", module)
    patch.setattr(run, "check_staged", lambda *_: {})  # rows of small stages; the rules have tests of their own
    patch.setattr(run, "_warm_up_checks", lambda *_: None)
    patch.setattr(run.gate, "decided", lambda env, recipe, result, **_: result)


def land(env: Environment) -> None:
    for day in DAYS:
        for source in (HOSTILE, "prose"):
            file = env.landing / source / day / "a.jsonl"
            file.parent.mkdir(parents=True)
            rows = [{"text": f"words {n} of {source} on {day}", "uri": f"u:{source}{day}{n}", "licence": LICENCE if n else "MIT"} for n in range(40)]
            rows += [{"text": f"words 1 of {source} on {day}", "uri": f"u:copy{source}{day}"}, {"text": "no LICENCE", "uri": f"u:bad{source}{day}"}]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(env: Environment, *, seed: int = 1) -> Any:
    """Every stage of a build; returns the result of register."""
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, seed=seed))
    for stage in ("forecast", "train", "evaluate", "review"):
        run.run_stage(env, stage, recipe)
    return run.run_stage(env, "register", recipe)


def home(folder: Path) -> Environment:
    """A home with two prepared days and one registered version."""
    env = Environment.load("local", folder)
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        land(env)
        arrow_stages.prepare(env, RECIPE, DAYS)
        build(env)
    assert results.newest(env, "register") is not None
    return env
