"""Recorded results: which version vouches for which data day when two recipes share a warehouse, and what a build finds to read."""

from __future__ import annotations

from dataclasses import replace

from jobs import recipes, run
from jobs.contract import StageResult, TableVersion
from jobs.services import results
from jobs.stages.decontaminate import WRITES


def record(env, day: str, version: int, config: str) -> None:
    results.record(env, StageResult(
        stage="pack", run_key=f"{config}-{day}-{version}", recipe=config, interval=day, inputs={}, outputs={"sequences": f"sequences@{version}"}, metrics={},
        config_hash=config, cost_usd=0.0, wall_seconds=0.0, code_revision="x", finished_at=f"2026-11-01T00:00:{version:02d}Z",
    ))  # fmt: skip


def days(env, up_to: int, config: str) -> dict[str, list[str]]:
    found = results.days_by_version(env, "pack", "sequences", TableVersion("sequences", up_to), config)
    return {str(version): names for version, names in found.items()}


def test_one_recipe_reads_every_day_at_the_version_asked_for(env):
    record(env, "2026-11-01", 1, "tiny")
    record(env, "2026-11-02", 2, "tiny")
    assert days(env, 2, "tiny") == {"sequences@2": ["2026-11-01", "2026-11-02"]}
    assert days(env, 1, "tiny") == {"sequences@1": ["2026-11-01"]}


def test_a_day_another_recipe_replaced_is_read_where_its_own_recipe_wrote_it(env):
    record(env, "2026-11-01", 1, "tiny")
    record(env, "2026-11-02", 2, "tiny")
    record(env, "2026-11-01", 3, "smoke")  # the same partition, other rows
    assert days(env, 3, "tiny") == {"sequences@1": ["2026-11-01"], "sequences@3": ["2026-11-02"]}
    assert days(env, 3, "smoke") == {"sequences@3": ["2026-11-01"]}
    record(env, "2026-11-01", 4, "tiny")  # done again, e.g. with other text: the newest of its own counts
    assert days(env, 4, "tiny") == {"sequences@4": ["2026-11-01", "2026-11-02"]}


def test_a_day_no_result_vouches_for_is_not_read(env):
    record(env, "2026-11-01", 1, "tiny")
    assert days(env, 5, "dbrx") == {}
    assert days(env, 5, "tiny") == {"sequences@5": ["2026-11-01"]}


def prepared(env, recipe, day: str, version: int, tokens: int) -> None:
    for stage, tables in {"decontaminate": WRITES, "pack": ("sequences",)}.items():
        results.record(env, StageResult(
            stage=stage, run_key=f"{stage}-{day}", recipe=recipe.name, interval=day, inputs={}, outputs={t: f"{t}@{version}" for t in tables},
            metrics={"tokens": tokens}, config_hash=recipe.config_hash(stage), cost_usd=0.0, wall_seconds=0.0, code_revision="x",
            finished_at=f"2026-11-01T00:00:{version:02d}Z",
        ))  # fmt: skip


def test_a_build_waits_for_its_recipes_tokens_and_says_what_is_missing(env):
    recipe = recipes.load("smoke")
    found = run.plan(env, recipe)
    assert not found["enough"] and found["inputs"] == {}
    assert "recipe smoke needs sequences, benchmark_items, contamination, contaminated_items, training_documents" in found["missing"]
    prepared(env, recipe, "2026-11-01", 1, recipe.min_new_tokens - 1)
    found = run.plan(env, recipe)
    assert (found["enough"], found["missing"], found["inputs"]["sequences"]) == (False, "", "sequences@1")
    prepared(env, recipe, "2026-11-02", 2, 1)
    found = run.plan(env, recipe)
    assert found["enough"] and found["days"] == ["2026-11-01", "2026-11-02"] and found["inputs"]["sequences"] == "sequences@2"
    assert not run.plan(env, recipes.load("tiny"))["enough"]  # another recipe's days are not its own


def test_a_corpus_filtered_or_decontaminated_otherwise_is_another_one():
    recipe = recipes.load("smoke")
    other_benchmarks = replace(recipe, suite=replace(recipe.suite, gauntlet_digest="0" * 64))
    other_rules = replace(recipe, clean=replace(recipe.clean, allow_unknown_licence=False))
    assert other_benchmarks.stage_config("pack") == recipe.stage_config("pack")  # the stage alone is asked for the same
    assert other_benchmarks.config_hash("pack") != recipe.config_hash("pack")
    assert other_benchmarks.config_hash("deduplicate") == recipe.config_hash("deduplicate")
    assert other_rules.config_hash("ingest") == recipe.config_hash("ingest")
    assert len({other_rules.config_hash(s) == recipe.config_hash(s) for s in ("clean", "deduplicate", "decontaminate", "pack")}) == 1
    assert other_rules.config_hash("clean") != recipe.config_hash("clean")
