import json
from dataclasses import asdict, fields, replace

import pytest

from jobs import recipes
from jobs.contract import MoelineError, StageResult, TableVersion, canonical, is_held_out, parse_day, run_key
from jobs.recipes import load, tiny
from jobs.services.training import train_config
from models.mixture import Mixture, Phase


def test_table_version_reads_what_it_writes():
    assert TableVersion.parse(str(TableVersion("documents", 7))) == TableVersion("documents", 7)


@pytest.mark.parametrize("text", ["documents", "documents@", "documents@-1", "../x@1", "Documents@1", "documents@1; rm", "@1", ""])
def test_a_bad_table_version_is_refused(text):
    with pytest.raises(MoelineError, match="name@number"):
        TableVersion.parse(text)


def test_stage_result_survives_json():
    result = StageResult("clean", "k", "tiny", "2026-11-01", {"documents": "documents@1"}, {"clean_documents": "clean_documents@2"}, {"n": 1}, 0.1, 2.0)
    assert StageResult.from_json(result.to_json()) == result


def test_run_key_depends_on_everything_that_is_computed():
    base = dict(stage="clean", revision=1, config=tiny().clean, inputs={"documents": "documents@1"}, interval="2026-11-01")
    changes = [
        {"stage": "pack"}, {"revision": 2}, {"config": tiny().pack}, {"inputs": {"documents": "documents@2"}}, {"interval": "2026-11-02"},
    ]  # fmt: skip
    keys = {run_key(**base), *(run_key(**{**base, **change}) for change in changes)}
    assert len(keys) == 6
    assert run_key(**base) == run_key(**base)


def test_where_it_runs_is_not_identity(env):
    import inspect

    assert "env" not in inspect.signature(run_key).parameters


def test_a_set_cannot_be_identity():
    with pytest.raises(TypeError):
        run_key("clean", 1, {"x": {1, 2}}, {}, None)


def test_one_percent_is_held_out():
    share = sum(is_held_out(str(i)) for i in range(20_000)) / 20_000
    assert 0.008 < share < 0.012


@pytest.mark.parametrize("text", ["2026-13-01", "yesterday", "2026-11-01T00:00", "", "../2026-11-01"])
def test_a_bad_day_is_refused(text):
    with pytest.raises(MoelineError, match="YYYY-MM-DD"):
        parse_day(text)


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(MoelineError, match="tiny"):
        load("tinny")


def test_dbrx_has_the_published_size():
    model = load("dbrx").model
    assert (round(model.params_total / 1e9, 1), round(model.params_active / 1e9, 1)) == (131.6, 36.5)


def test_unknown_stage_lists_the_known_ones():
    with pytest.raises(MoelineError, match="ingest"):
        tiny().stage_config("prepare")


def test_gauntlet_data_is_identity(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    before = recipes.load("tiny", gauntlet_data=str(tmp_path)).suite
    (tmp_path / "a.jsonl").write_text('{"x": 1}')
    assert recipes.load("tiny", gauntlet_data=str(tmp_path)).suite != before != tiny().suite
    with pytest.raises(MoelineError, match="not a folder"):
        recipes.load("tiny", gauntlet_data=str(tmp_path / "missing"))


def test_a_field_that_came_later_changes_no_identity_until_it_is_used():
    recipe = tiny()
    mixture = Mixture(phases=(Phase(weights=(("python-code", 1.0),)),))
    later = {"mixture", "schedule", "micro_batch_sequences", "activation_checkpointing", "compile", "balance_bias_rate", "spike_sigmas", "expert_parallel"}
    assert set(canonical(recipe.train)) == {f.name for f in fields(recipe.train)} - later
    apart = replace(recipe, pack=replace(recipe.pack, separate_sources=True))
    mixed = replace(apart, train=replace(recipe.train, mixture=mixture))
    assert canonical(mixed.train)["mixture"] == {"phases": [{"weights": [["python-code", 1.0]], "share": 1.0}], "max_epochs": []}
    assert apart.config_hash("pack") != recipe.config_hash("pack")
    assert mixed.config_hash("train") != apart.config_hash("train") == recipe.config_hash("train")


def test_a_mixture_without_separate_sources_is_refused_by_the_recipe():
    with pytest.raises(MoelineError, match="Set separate_sources=True in its PackConfig"):
        replace(tiny(), train=replace(tiny().train, mixture=Mixture(phases=(Phase(weights=(("python-code", 1.0),)),))))


def test_a_training_that_cannot_be_is_refused_when_its_recipe_is_made():
    train = replace(tiny().train, schedule="cosine", micro_batch_sequences=2, spike_sigmas=6.0, activation_checkpointing=True)
    loop = train.loop_config()
    assert (loop.steps, loop.schedule, loop.micro_batch_sequences, loop.spike_sigmas, loop.activation_checkpointing) == (train.steps, "cosine", 2, 6.0, True)
    assert train_config(json.loads(json.dumps(asdict(train)))) == train
    with pytest.raises(MoelineError, match="schedule must be one of wsd, cosine"):
        replace(train, schedule="linear")
