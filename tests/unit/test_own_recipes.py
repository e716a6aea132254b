"""Recipes that are files: written once, read everywhere a recipe's name is taken, and whatever a file holds is a sentence, not a crash."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import cli, own_recipes, recipes, run, sizing
from jobs.config import STAGES
from jobs.contract import MoelineError
from jobs.own_recipes import OwnRecipe
from models.mixture import Mixture, Phase

MORE = OwnRecipe(base="smoke", tokens=90_112, why="group 0 of v3")


def put(home: Path, text: str | bytes, name: str = "mine") -> Path:
    file = home / "recipes" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def problem_of(home: Path, text: str | bytes) -> str:
    put(home, text)
    with pytest.raises(MoelineError) as caught:
        recipes.load("mine", home=home)
    return str(caught.value)


def test_what_was_saved_is_the_base_with_other_tokens_and_proxies_made_by_the_same_rule(tmp_path):
    assert own_recipes.save(tmp_path, "more", MORE)
    found, base = recipes.load("more", home=tmp_path), recipes.load("smoke")
    assert (found.name, found.tokens, found.train.tokens) == ("more", 90_112, 90_112)
    assert [p.tokens / 90_112 for p in found.proxies] == pytest.approx([p.tokens / 60_000 for p in base.proxies], rel=1e-4)
    assert [p.model for p in found.proxies] == [p.model for p in base.proxies]
    same = replace(found, name=base.name, tokens=base.tokens, train=base.train, proxies=base.proxies)
    assert same == base  # nothing else differs
    assert recipes.load("base-again", home=_saved(tmp_path, "base-again", replace(MORE, tokens=60_000))).proxies == base.proxies


def _saved(home: Path, name: str, own: OwnRecipe) -> Path:
    own_recipes.save(home, name, own)
    return home


def test_its_identity_is_what_it_asks_for_not_its_name_or_reason(tmp_path):
    own_recipes.save(tmp_path, "a", MORE)
    own_recipes.save(tmp_path, "b", replace(MORE, why="another reason"))
    own_recipes.save(tmp_path, "c", replace(MORE, tokens=102_400))
    own_recipes.save(tmp_path, "d", replace(MORE, sources=("python-docs",)))
    a, b, c, d = (recipes.load(name, home=tmp_path) for name in "abcd")
    smoke = recipes.load("smoke")
    assert [a.config_hash(s) for s in STAGES] == [b.config_hash(s) for s in STAGES]
    assert {s for s in STAGES if c.config_hash(s) != a.config_hash(s)} == {"forecast", "train"}
    # More tokens of the same sources read the corpus that is there; other sources are another corpus.
    assert a.config_hash("pack") == smoke.config_hash("pack") != d.config_hash("pack")


def test_a_mixture_is_kept_reaches_target_and_proxies_and_packs_sources_apart(tmp_path):
    mixture = Mixture(phases=(Phase(weights=(("docs", 3), ("web\N{SNOWMAN}", 0.5))),), max_epochs=(("*", 1.0), ("docs", 2)))
    own = replace(MORE, mixture=mixture)
    assert own_recipes.save(tmp_path, "weighed", own) and own_recipes.read(tmp_path, "weighed") == own and not own_recipes.save(tmp_path, "weighed", own)
    written = json.loads((tmp_path / "recipes" / "weighed.json").read_text())
    assert written["mixture"] == {"weights": {"docs": 3, "web\N{SNOWMAN}": 0.5}, "max_epochs": {"*": 1.0, "docs": 2}}
    made = recipes.load("weighed", home=tmp_path)
    assert made.pack.separate_sources and {t.mixture for t in (made.train, *made.proxies)} == {mixture}
    own_recipes.save(tmp_path, "plain", MORE)
    plain = recipes.load("plain", home=tmp_path)
    assert {s for s in STAGES if made.config_hash(s) != plain.config_hash(s)} == {"pack", "summarise", "forecast", "train"}  # summarise counts what was packed
    assert "mixture" not in json.loads((tmp_path / "recipes" / "plain.json").read_text()) and not plain.train.mixture
    assert "weighed docs 86%, web\N{SNOWMAN} 14%" in own_recipes.render(own_recipes.listing(tmp_path))
    with pytest.raises(MoelineError, match="2 phases"):
        replace(MORE, mixture=Mixture(phases=(Phase(weights=(("a", 1),), share=0.5),) * 2))


def test_saving_the_same_again_changes_nothing_and_another_content_is_refused(tmp_path):
    assert own_recipes.save(tmp_path, "more", MORE)
    file = tmp_path / "recipes" / "more.json"
    before = (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino)
    assert not own_recipes.save(tmp_path, "more", MORE)
    with pytest.raises(MoelineError, match="exists and says something else"):
        own_recipes.save(tmp_path, "more", replace(MORE, tokens=102_400))
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == before
    assert [f.name for f in file.parent.iterdir()] == ["more.json"]


def _save(home: Path, tokens: int, start: multiprocessing.Event, out: multiprocessing.Queue) -> None:
    start.wait()
    try:
        out.put((tokens, own_recipes.save(home, "raced", replace(MORE, tokens=tokens))))
    except MoelineError:
        out.put((tokens, None))


def test_of_many_that_save_one_name_at_once_one_wins_and_its_content_is_there(tmp_path):
    context = multiprocessing.get_context("spawn")  # a child forked beside other threads may never end
    start, out = context.Event(), context.Queue()
    workers = [context.Process(target=_save, args=(tmp_path, 90_112 + 512 * (i % 3), start, out)) for i in range(9)]
    for worker in workers:
        worker.start()
    start.set()
    found = [out.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    winner = own_recipes.read(tmp_path, "raced").tokens
    assert [tokens for tokens, made in found if made] == [winner]
    assert all((made is None) == (tokens != winner) for tokens, made in found)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/etc/passwd", "A", "-x", "x.json", "a b", "a\n", "x" * 65, "é", ".x", "con\x00"])
def test_a_name_that_is_no_plain_name_is_refused_and_touches_no_file(tmp_path, name):
    with pytest.raises(MoelineError, match="Not a name for a recipe"):
        own_recipes.save(tmp_path / "home", name, MORE)
    with pytest.raises(MoelineError, match="Unknown recipe"):
        recipes.load(name, home=tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_a_built_in_name_is_refused_and_stays_built_in(tmp_path):
    with pytest.raises(MoelineError, match="built-in recipe"):
        own_recipes.save(tmp_path, "tiny", MORE)
    put(tmp_path, json.dumps({"base": "smoke", "tokens": 90_112}), "tiny")
    assert recipes.load("tiny", home=tmp_path) == recipes.load("tiny")


NO_JSON = ["", "{", b"\xff\xfe", "[" * 50_000, '{"base": "smoke", "tokens": NaN}', '{"base": "smoke", "tokens": %s}' % ("9" * 5000)]
NO_FORM = [
    ("[]", "not an object"), ("null", "not an object"), (" " * (65 << 10) + "{}", "larger than"), ('{"base": "smoke"}', "does not say tokens"),
    ('{"tokens": 90112}', "does not say base"), ('{"base": "smoke", "tokens": 90112, "tokens": 90113}', "twice"),
]  # fmt: skip
BAD_FIELDS = [
    ('"base": "other"', "built-in one"), ('"base": ["smoke"]', "built-in one"), ('"base": "../smoke"', "built-in one"), ('"tokens": "90112"', "whole number"),
    ('"tokens": 90112.0', "whole number"), ('"tokens": true', "whole number"), ('"tokens": 0', "whole number"), ('"tokens": -90112', "whole number"),
    ('"tokens": 1e400', "whole number"), ('"tokens": %s' % ("9" * 400), "whole number"), ('"model": {}', "unknown key 'model'"), ('"sources": "x"', "sources"),
    ('"sources": []', "sources"), ('"sources": ["b", "a"]', "sorted"), ('"sources": ["a", "a"]', "sorted"), ('"sources": ["../a"]', "no name of a folder"),
    ('"sources": [1]', "no name of a folder"), ('"sources": [[]]', "no name of a folder"), ('"sources": ["a\\u001b[2J"]', "no name of a folder"),
    ('"budget_usd": 0', "budget_usd"), ('"budget_usd": 1e999', "budget_usd"), ('"budget_usd": true', "budget_usd"), ('"budget_usd": "1"', "budget_usd"),
    *(
        (f'"mixture": {raw}', "mixture must be an object")
        for raw in ("[]", '"x"', "{}", '{"weights": []}', '{"weights": {"a": "1"}}', '{"weights": {"a": true}}')
    ),
    ('"mixture": {"weights": {"a": 1}, "phases": []}', "mixture must be an object"), ('"mixture": {"weights": {"a": -1}}', "mixture cannot be used"),
    ('"mixture": {"weights": {}}', "mixture cannot be used"), ('"mixture": {"weights": {"a": 0}}', "not all 0"),
    ('"mixture": {"weights": {"a": 1e999}}', "finite"),
    ('"mixture": {"weights": {"a": 1}, "max_epochs": {"a": 0}}', "max_epochs must be above 0"),
    ('"mixture": {"weights": {"a\\u001b": 1}}', "printable"), ('"mixture": {"weights": {"": 1}}', "printable"),
    ('"why": ["x"]', "why"), ('"why": "\\u001b]0;x\\u0007"', "why"),
]  # fmt: skip


def with_field(field: str) -> str:
    """A whole file, with one field more or replaced."""
    good = {'"base"': '"base": "smoke"', '"tokens"': '"tokens": 90112'}
    return "{" + ", ".join({**good, field.partition(":")[0]: field}.values()) + "}"


@pytest.mark.parametrize(("text", "says"), [*((text, "JSON") for text in NO_JSON), *NO_FORM, *((with_field(field), says) for field, says in BAD_FIELDS)])
def test_a_file_that_is_no_recipe_is_named_with_what_is_wrong(tmp_path, text, says):
    found = problem_of(tmp_path, text)
    assert says in found and "mine.json is not a recipe" in found and found.isprintable() and len(found) < 700


def test_links_folders_and_pipes_are_not_read(tmp_path):
    import os

    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"base": "smoke", "tokens": 90_112}))
    folder = tmp_path / "recipes"
    (folder / "a-folder.json").mkdir(parents=True)
    (folder / "a-link.json").symlink_to(secret)
    os.mkfifo(folder / "a-pipe.json")
    for name in ("a-folder", "a-link", "a-pipe"):
        with pytest.raises(MoelineError, match=r"cannot be read|not a plain file"):
            recipes.load(name, home=tmp_path)


def test_an_unknown_recipe_lists_the_built_in_and_own_ones(tmp_path):
    own_recipes.save(tmp_path, "more", MORE)
    with pytest.raises(MoelineError, match="Known recipes: dbrx, h200, h200_dense, moe_b, moe_b_dense, more, small_cpu"):
        recipes.load("mroe", home=tmp_path)


def test_the_commands_take_its_name(env, capsys):
    own_recipes.save(env.home, "more", MORE)
    assert cli.main(["recipes", "--home", str(env.home), "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(listed) == [*recipes.RECIPES, "more"] and listed["more"] == {
        **listed["smoke"],
        **sizing.size(recipes.load("more", home=env.home)),
        "name": "more",
        "base": "smoke",
        "tokens": 90_112,
        "why": MORE.why,
    }
    assert run.plan(env, recipes.load("more", home=env.home))["missing"].startswith("A model of recipe more needs sequences")
    assert cli.main(["stage", "train", "--recipe", "more", "--home", str(env.home)]) == 1
    assert "Stage train reads sequences" in capsys.readouterr().err  # known, and there is nothing to train on
    assert cli.main(["stage", "train", "--recipe", "less", "--home", str(env.home)]) == 1
    assert "Unknown recipe 'less'" in capsys.readouterr().err


def test_a_task_of_airflow_finds_it_in_the_home(env, monkeypatch, capsys):
    own_recipes.save(env.home, "more", MORE)
    monkeypatch.setenv("MOELINE_HOME", str(env.home))
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    monkeypatch.setattr(run, "_stop_with_parent", lambda: None)
    assert run.main(["plan", "--recipe", "more"]) == 0
    assert json.loads(capsys.readouterr().out)["min_new_tokens"] == recipes.load("smoke").min_new_tokens


def test_the_list_shows_a_broken_file_with_its_problem_and_goes_on(env, capsys):
    own_recipes.save(env.home, "more", MORE)
    put(env.home, '{"base": "smoke"}', "broken")
    assert cli.main(["recipes", "--home", str(env.home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*recipes.RECIPES, "broken", "more"]
    assert "CANNOT BE USED" in lines[-2] and "does not say tokens" in lines[-2]
    assert "own, from smoke: 90,112 tokens" in lines[-1] and "group 0 of v3" in lines[-1]
