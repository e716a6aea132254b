"""Golden files: what must not change by accident, compared exactly. `make golden` rewrites them; review the difference before committing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs import config, recipes
from jobs.contract import canonical, run_key
from jobs.stages.clean import Judge
from models.config import ModelConfig
from models.gauntlet import symbolic

FOLDER = Path(__file__).parent
TEXTS = {
    "code": "import os\n\n\ndef first(values):\n    for value in values:\n        return value\n    return None\n" * 4,
    "prose": "The quick brown fox is with the lazy dog, and it has to be said that of all foxes this one was fast.\n" * 6,
    "list": "- one\n- two\n- three\n...\n" * 30,
}


def recipe_configs() -> object:
    """Every knob of every recipe: a changed default is a changed identity, and so recomputes everything."""
    return {name: canonical(recipes.load(name)) for name in sorted(recipes.RECIPES)}


def identities() -> object:
    tiny = recipes.load("tiny")
    return {stage: run_key(stage, 1, tiny.stage_config(stage), {"input": "table@1"}, "2026-11-01") for stage in config.STAGES}


def sizes() -> object:
    found = {}
    for name in sorted(recipes.RECIPES):
        model: ModelConfig = recipes.load(name).model
        found[name] = {"params_total": model.params_total, "params_active": model.params_active, "flops_per_token": model.flops_per_token}
    return found


def symbolic_items() -> object:
    return {task: [item.row for item in symbolic.make_items(task, n=5, seed=1234)] for task in ("brackets", "arithmetic")}


def verdicts() -> object:
    judge = Judge(config.CleanConfig())
    return {f"{source} {name}": canonical_verdict(judge(source, "MIT", text)) for source in ("python-code", "python-docs") for name, text in TEXTS.items()}


def canonical_verdict(verdict: object) -> object:
    return json.loads(json.dumps(verdict, default=lambda value: getattr(value, "__dict__", None) or str(value)))


@pytest.mark.parametrize("make", [recipe_configs, identities, sizes, symbolic_items, verdicts], ids=lambda f: f.__name__)
def test_golden(make):
    file = FOLDER / f"{make.__name__}.json"
    found = json.dumps(make(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("MOELINE_REWRITE_GOLDEN"):
        file.write_text(found)
    assert file.read_text() == found, f"{file.name} differs. If the change is meant, run `make golden` and review the difference."
