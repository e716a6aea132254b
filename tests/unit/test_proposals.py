"""What a review proposes to train on next: tokens by the stated rule, what the corpus holds of it, prices as measured, and the recipe it becomes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import reviewed_runs
from reviewed_runs import TRAIN

from jobs import cli, own_recipes, proposals, recipes
from jobs.config import STAGES
from jobs.contract import MoelineError
from jobs.environment import Resources
from jobs.services import results
from models.mixture import Mixture, Phase, Plan, SourceSize

CORE_HOUR = 0.045  # infra/env/local.toml
STEP = 512  # tokens of a step of the recipe smoke


def described(env, **how):
    reviewed_runs.write(env, **how)
    return proposals.describe(env, TRAIN[:12])


def propose(env, *numbers, as_recipe=None, only_nearest=False, budget_usd=None):
    return proposals.propose(env, TRAIN[:12], numbers, as_recipe=as_recipe, only_nearest=only_nearest, budget_usd=budget_usd)


def test_the_runs_tokens_are_dealt_out_by_failures_and_likeness_and_all_groups_together_ask_for_them_once(env):
    found = described(env)
    wants = [{row["source"]: row["wanted"] for row in g["proposal"]["sources"]} for g in found["groups"]]
    # 100,352 tokens; 60, 30 and 10 of 100 failures; rounded up.
    assert wants == [{"python-docs": 45_159, "python-code": 15_053}, {"python-code": 30_106}, {"": 10_036}]
    assert sum(sum(w.values()) for w in wants) == pytest.approx(found["tokens"], abs=4)
    assert [g["share_of_failures"] for g in found["groups"]] == [0.6, 0.3, 0.1]


def test_a_recipe_gives_every_named_source_what_is_proposed_in_whole_steps_and_no_step_more(env):
    proposal = described(env)["groups"][0]["proposal"]
    # docs are a fifth of the corpus, so the run has read 20,070 tokens of them and 80,282 of the code; 45,159 and 15,053 are proposed.
    assert proposal["weights"] == {"python-code": 80_282 + 15_053, "python-docs": 20_070 + 45_159}
    assert proposal["recipe_tokens"] == -(-(100_352 + 60_212) // STEP) * STEP == 160_768
    assert proposal["added_tokens"] == 160_768 - 100_352
    for row in proposal["sources"]:  # a sequence holds 128 tokens, a step rounds a source's share up or down
        assert row["tokens"] - 128 <= row["gets"] <= row["tokens"] + STEP
    assert sum(row["gets"] for row in proposal["sources"]) == pytest.approx(proposal["added_tokens"], abs=128)  # a source's last sequence is padded


def test_what_was_read_of_a_source_is_what_the_training_recorded(env):
    found = described(env, train_metrics={"tokens_by_source": {"python-code": 352, "python-docs": 100_000}})
    assert {row["source"]: row["seen"] for row in found["corpus"]} == {"python-code": 352, "python-docs": 100_000}
    assert found["groups"][0]["proposal"]["weights"] == {"python-code": 352 + 15_053, "python-docs": 145_159}


def test_the_training_of_a_proposal_reads_the_shares_it_was_given_and_nothing_twice(env):
    """The recipe's own plan, on a corpus of whole sequences: what training would read."""
    reviewed_runs.write(env)
    for number, name in ((0, "docs"), (1, "code")):
        proposal = propose(env, number, as_recipe=name)["proposal"]
        recipe = recipes.load(name, home=env.home)
        assert recipe.pack.separate_sources and all(p.mixture == recipe.train.mixture for p in recipe.proxies)
        sizes = {source: SourceSize(sequences=held // 128, tokens=held) for source, held in reviewed_runs.CORPUS.items()}
        for train in (recipe.train, *recipe.proxies):
            read = Plan(train.mixture, sizes, steps=train.steps, batch_sequences=train.batch_sequences, seed=1).before(train.steps)
            for source, weight in proposal["weights"].items():
                share = weight / sum(proposal["weights"].values())
                assert read[source] * 128 == pytest.approx(train.steps * STEP * share, abs=256) and read[source] <= sizes[source].sequences


def test_what_the_corpus_does_not_hold_untrained_must_be_landed(env):
    found = described(env, corpus={"python-code": 150_000, "python-docs": 50_000})
    corpus = {row["source"]: row for row in found["corpus"]}
    assert corpus["python-docs"] == {"source": "python-docs", "tokens": 50_000, "seen": 25_088, "left": 24_912}
    docs = found["groups"][0]["proposal"]["sources"][0]
    assert (docs["wanted"], docs["tokens"], docs["to_land"]) == (45_159, 24_912, 20_247)
    # all docs that are left and the wanted code; the docs reach the end of their only pass and the code takes over
    assert found["groups"][0]["proposal"]["weights"] == {"python-code": 75_264 + 15_053, "python-docs": 50_000}
    assert found["groups"][0]["proposal"]["recipe_tokens"] == -(-140_317 // STEP) * STEP
    assert found["groups"][0]["proposal"]["to_land"] == 20_247


def test_the_last_tokens_of_a_corpus_are_proposed_without_reading_any_twice(env):
    proposal = described(env, corpus={"python-code": 100_400, "python-docs": 20_100}, groups=[(5, (("python-docs", 0.5), ("python-code", 0.5)))])
    proposal = proposal["groups"][0]["proposal"]
    assert proposal["weights"] == {"python-code": 100_400, "python-docs": 20_100} and all(row["to_land"] for row in proposal["sources"])
    assert 120_500 - 2 * STEP <= proposal["recipe_tokens"] <= 120_500 + STEP  # in whole steps, and both sources end within their pass
    assert all(0 < row["gets"] <= row["left"] for row in proposal["sources"])


def test_a_lower_epoch_cap_of_the_runs_recipe_is_kept(env):
    capped = Mixture(phases=(Phase(weights=(("python-code", 1), ("python-docs", 1))),), max_epochs=(("python-docs", 0.05),))
    own_recipes.save(env.home, "mine", own_recipes.OwnRecipe(base="smoke", tokens=100_352, mixture=capped))
    reviewed_runs.write(env)
    results.record(env, replace(results.find(env, "train", TRAIN), recipe="mine"))
    docs = propose(env, 0, as_recipe="more")["proposal"]["sources"][0]
    assert (docs["source"], docs["left"], docs["to_land"]) == ("python-docs", 0, 45_159)  # 20,070 of 200,000 read already
    assert dict(recipes.load("more", home=env.home).train.mixture.max_epochs) == {"python-docs": 0.05, "*": 1.0}


def test_a_run_that_read_everything_gets_no_recipe_but_hears_what_to_land(env):
    found = described(env, corpus={"python-code": 40_000, "python-docs": 10_000})
    for g in found["groups"]:
        assert g["command"] is None and g["proposal"]["recipe_tokens"] is None and g["proposal"]["build_usd"] is None
        assert all(row["tokens"] == 0 and row["to_land"] == row["wanted"] for row in g["proposal"]["sources"])
    with pytest.raises(MoelineError, match="holds no text like these failures that it has not trained on: 45,159 tokens of python-docs, 15,053 tokens of"):
        propose(env, 0, as_recipe="more")
    assert not (env.home / "recipes").exists()


def test_failures_like_nothing_in_the_corpus_ask_for_a_new_source(env):
    proposal = described(env)["groups"][2]["proposal"]
    assert proposal["sources"] == [{"source": "", "wanted": 10_036, "left": 0, "tokens": 0, "to_land": 10_036, "gets": 0}]
    with pytest.raises(MoelineError, match="10,036 tokens of a source that is not there yet"):
        propose(env, 2)


def test_prices_are_the_measured_seconds_at_the_price_sheet(env):
    found = described(env)
    price = found["price"]
    assert price["from_run"] == found["run_id"] and price["environment"] == "local"
    assert price["train_per_token"] == pytest.approx(CORE_HOUR / 100_352)
    assert price["forecast_per_token"] == pytest.approx(CORE_HOUR / 2 / 100_352)
    assert price["prepare_per_token"] == pytest.approx(4 * 72 / 3600 * CORE_HOUR / 1_000_000)
    assert price["once"] == {"evaluate": pytest.approx(CORE_HOUR / 10), "review": pytest.approx(CORE_HOUR / 100), "register": None}
    proposal = found["groups"][0]["proposal"]
    assert price["pack_per_token"] == pytest.approx(2 * 72 / 3600 * CORE_HOUR / 1_000_000)
    assert proposal["added_usd"] == pytest.approx(1.5 * CORE_HOUR * (160_768 - 100_352) / 100_352)
    # of 0.15 core hours 0.11 are what every build costs, 0.04 packing the corpus into sequences of one source each
    assert proposal["build_usd"] == pytest.approx(1.5 * CORE_HOUR * 160_768 / 100_352 + 0.15 * CORE_HOUR)
    assert proposal["not_priced"] == ["register"]
    assert found["groups"][2]["proposal"]["landing_usd"] == pytest.approx(10_036 * price["prepare_per_token"])


def test_another_price_sheet_gives_other_prices_of_the_same_measurement(env):
    reviewed_runs.write(env)
    dearer = replace(env, prices=replace(env.prices, core_hour=10 * CORE_HOUR))
    ours, theirs = (proposals.describe(e, TRAIN[:12])["groups"][0]["proposal"]["build_usd"] for e in (env, dearer))
    assert theirs == pytest.approx(10 * ours)


def test_a_training_without_a_charge_or_a_price_is_an_error_not_zero(env):
    reviewed_runs.write(env, charged=False)
    with pytest.raises(MoelineError, match="no row in the table costs"):
        proposals.describe(env, TRAIN[:12])
    reviewed_runs.charge(env, "train", TRAIN, 60.0, "failed")
    with pytest.raises(MoelineError, match="no row in the table costs"):
        proposals.describe(env, TRAIN[:12])
    with_gpus = replace(env, prices=replace(env.prices, gpu_hour=2.0))  # the training ran where GPUs had a price; this sheet has none
    reviewed_runs.charge(with_gpus, "train", TRAIN, 60.0, "succeeded", Resources(cores=1.0, memory_gib=0.0, gpus=1.0))
    with pytest.raises(MoelineError, match=r"1 GPUs, and environment local has no price for that \(gpu_hour is 0\)"):
        proposals.describe(env, TRAIN[:12])
    free = replace(env, prices=replace(env.prices, core_hour=0.0, gpu_hour=0.0))
    with pytest.raises(MoelineError, match=r"\[prices\] of infra/env/local.toml"):
        proposals.describe(free, TRAIN[:12])


def test_a_price_nobody_measured_is_named_and_left_out(env):
    found = described(env, forecast=False)
    proposal = found["groups"][0]["proposal"]
    assert found["price"]["forecast_per_token"] is None and proposal["not_priced"] == ["forecast", "register"]
    assert proposal["added_usd"] == pytest.approx(CORE_HOUR * (160_768 - 100_352) / 100_352)
    assert "not measured in that run: forecast, register" in proposals.render(found)


def test_killed_tries_count_where_the_training_went_on_from_them(env):
    reviewed_runs.write(env, train_metrics={"resumed_from_step": 50})
    reviewed_runs.charge(env, "train", TRAIN, 1800.0, "killed")
    assert proposals.describe(env, TRAIN[:12])["price"]["train_per_token"] == pytest.approx(1.5 * CORE_HOUR / 100_352)


def test_one_command_makes_the_recipe_and_again_changes_nothing(env, capsys):
    command = described(env)["groups"][0]["command"].split()
    assert command == ["moeline", "propose", TRAIN[:12], "--group", "0", "--as-recipe", "smoke-a1b2c3-g0"]
    assert cli.main([*command[1:], "--home", str(env.home), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["written"] and first["next"] == "moeline run --recipe smoke-a1b2c3-g0" and first["proposal"]["recipe_tokens"] == 160_768
    recipe = recipes.load("smoke-a1b2c3-g0", home=env.home)
    assert (recipe.tokens, recipe.ingest.sources) == (160_768, ()) and dict(recipe.train.mixture.phases[0].weights) == first["proposal"]["weights"]
    smoke = recipes.load("smoke")
    assert {s for s in STAGES if recipe.config_hash(s) != smoke.config_hash(s)} == {"pack", "summarise", "forecast", "train"}
    assert cli.main([*command[1:], "--home", str(env.home)]) == 0
    assert "was there already, unchanged" in capsys.readouterr().out
    assert cli.main(["propose", TRAIN[:12], "--group", "1", "--as-recipe", "smoke-a1b2c3-g0", "--home", str(env.home)]) == 1
    assert "exists and says something else" in capsys.readouterr().err
    assert cli.main(["propose", TRAIN[:12], "--as-recipe", "../out", "--home", str(env.home)]) == 1
    assert "Not a name for a recipe" in capsys.readouterr().err


def test_several_groups_ask_together_and_all_of_them_is_the_default(env):
    reviewed_runs.write(env)
    both = propose(env, 1, 0, 0)
    assert both["groups"] == [0, 1] and {r["source"]: r["wanted"] for r in both["proposal"]["sources"]} == {"python-docs": 45_159, "python-code": 45_159}
    assert propose(env)["groups"] == [0, 1, 2]


def test_only_the_nearest_sources_are_another_corpus_that_is_prepared_anew(env):
    reviewed_runs.write(env)
    made = propose(env, 1, as_recipe="code-only", only_nearest=True)
    recipe = recipes.load("code-only", home=env.home)
    assert recipe.ingest.sources == ("python-code",) and recipe.config_hash("pack") != recipes.load("smoke").config_hash("pack")
    assert recipe.tokens == -(-(80_282 + 30_106) // STEP) * STEP  # what it saw of the code, and the proposed rest
    assert recipe.train.mixture.phases[0].weights == (("python-code", 110_388),)
    price = made["price"]
    per_token = price["train_per_token"] + price["forecast_per_token"]
    assert made["proposal"]["build_usd"] == pytest.approx(recipe.tokens * per_token + 0.11 * CORE_HOUR + 800_000 * price["prepare_per_token"])


def test_a_recipe_made_from_an_own_recipes_run_rests_on_the_built_in_one(env):
    own_recipes.save(env.home, "mine", own_recipes.OwnRecipe(base="smoke", tokens=100_352, sources=("python-code", "python-docs"), budget_usd=3.0))
    reviewed_runs.write(env)
    results.record(env, replace(results.find(env, "train", TRAIN), recipe="mine"))
    propose(env, 0, as_recipe="mine-more")
    own = own_recipes.read(env.home, "mine-more")
    assert (own.base, own.tokens, own.sources, own.budget_usd) == ("smoke", 160_768, ("python-code", "python-docs"), 3.0)
    (env.home / "recipes" / "mine.json").unlink()
    with pytest.raises(MoelineError, match="Unknown recipe 'mine'"):
        propose(env, 0)


def test_a_build_above_the_budget_is_said_and_the_budget_is_only_changed_when_asked(env):
    reviewed_runs.write(env)
    dear = replace(env, prices=replace(env.prices, core_hour=9.0))
    found = propose(dear, 0, as_recipe="dear")
    assert found["over_budget"] and found["budget_usd"] == 0.25 == recipes.load("dear", home=env.home).budget_usd
    assert "above the budget of $0.25" in proposals.render_proposed(found)
    allowed = propose(dear, 0, as_recipe="allowed", budget_usd=100.0)
    assert not allowed["over_budget"] and recipes.load("allowed", home=env.home).budget_usd == 100.0
    for budget in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MoelineError, match="budget_usd must be"):
            propose(env, 0, as_recipe="bad", budget_usd=budget)


def test_a_run_is_found_by_its_names_and_an_unknown_one_or_group_is_said(env):
    run_id = described(env)["run_id"]
    assert proposals.describe(env, run_id)["train_key"] == TRAIN == proposals.describe(env, TRAIN[:6])["train_key"]
    for name in ("nobody", "", TRAIN[:5], "v1", "champion"):
        with pytest.raises(MoelineError, match="No run is called"):
            proposals.describe(env, name)
    with pytest.raises(MoelineError, match=r"no failure group -1, 7; there are 0 to 2"):
        propose(env, 7, -1, 0)


def test_a_run_without_a_review_or_groups_is_told_what_to_run(env):
    reviewed_runs.write(env, groups=())
    with pytest.raises(MoelineError, match="failed nowhere"):
        propose(env)
    assert proposals.describe(env, TRAIN[:12])["groups"] == []
    review = results.find(env, "review", "review-1")
    results.record(env, replace(review, outputs={"verdicts": "verdicts@1"}))
    with pytest.raises(MoelineError, match="reviewed before failures were grouped"):
        propose(env)
    (env.warehouse / "_results" / "review" / "review-1.json").unlink()
    with pytest.raises(MoelineError, match="needs its stage review"):
        propose(env)


def test_what_the_text_says_is_plain_and_names_run_rule_and_mixture(env):
    text = proposals.render(described(env))
    assert "\x1b" not in text and proposals.RULE in text and proposals.MIXTURE in text and "measured in run by-hand-a1b2c3d4" in text
    assert "45,159 tokens more of python-docs" in text and f"$ moeline propose {TRAIN[:12]} --group 0 --as-recipe smoke-a1b2c3-g0" in text
    assert "weighed python-code 59%, python-docs 41%" in text
    assert "10,036 tokens of text like this, from a source that is not there yet, must be landed" in text


def test_text_of_the_corpus_cannot_write_on_the_terminal(env):
    reviewed_runs.write(env, groups=[(5, (("python-code", 1.0),), "\x1b]0;owned\x07 \x1b[2J \u202ereversed \nfake")])
    text = proposals.render(proposals.describe(env, TRAIN[:12]))
    assert all(c.isprintable() for line in text.split("\n") for c in line) and "\nfake" not in text


def test_nor_can_the_name_of_a_source(env):
    reviewed_runs.write(env, corpus={"python-code": 40_000}, groups=[(5, (("\x1b[2Jgone", 1.0),))])
    with pytest.raises(MoelineError, match="tokens of \N{REPLACEMENT CHARACTER}\\[2Jgone"):
        propose(env, 0)
