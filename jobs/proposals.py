"""moeline propose RUN: for every group of a run's failures which sources to train more on, how many tokens, and what that costs.

Change here: how many tokens are proposed, how they are priced, what is shown. Not here: the groups and their nearest documents
(jobs/stages/review.py), the recipe that comes of it (jobs/own_recipes.py).

The rule (RULE) deals the run's own tokens out once more. It says where to look, not what is gained: no accuracy is promised.
Tokens are capped by what the run's corpus holds and the run has not trained on; the rest must be landed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import own_recipes, recipes
from jobs.contract import MoelineError, StageResult
from jobs.environment import Environment
from jobs.own_recipes import OwnRecipe
from jobs.services import delta, report, results
from jobs.services.prices import Measured, measure
from models.mixture import Mixture, Phase, Plan, SourceSize

RULE = (
    "The run's own tokens are dealt out once more: to the groups by their share of all failures, and within a group to the sources by their share of the "
    "similarity of its nearest training documents. All groups together ask for as many tokens as the run trained on."
)
MIXTURE = (
    "The recipe weighs its sources: of each it trains on what the run read, of the named ones on what is proposed more, and nothing is read twice. Sequences "
    "then hold one source each, so a corpus that is not packed so is packed anew. The model is trained from the beginning."
)


@dataclass(frozen=True)
class Reviewed:
    """A run that was trained and reviewed. ``corpus``: training tokens by source; ``groups``: its rows of failure_groups, in order."""

    about: Mapping[str, Any]
    trained: StageResult
    corpus: Mapping[str, int]
    groups: tuple[Mapping[str, Any], ...]
    packed_as: str
    measured: Measured

    @property
    def tokens(self) -> int:
        return int(self.trained.metrics["tokens"])

    @property
    def failures(self) -> int:
        return sum(g["n"] for g in self.groups)

    def seen(self, source: str) -> int:
        """Tokens of ``source`` the run has trained on, at most once each: as recorded, or its share of the corpus where that was not."""
        held, read = self.corpus.get(source, 0), self.trained.metrics.get("tokens_by_source")
        return min(held, int(read.get(source, 0)) if read else round(self.tokens * held / sum(self.corpus.values())))

    def left(self, source: str) -> int:
        """Tokens of ``source`` it has not: of one pass, or of as much of one as the run's recipe allows."""
        return max(0, math.floor(self.corpus.get(source, 0) * _epochs(self, source)) - self.seen(source))


def find(env: Environment, name: str) -> Reviewed:
    """The run called ``name`` (see report.named). Raises MoelineError when it was not trained and reviewed, or a number of it is missing."""
    records = report.Records(env)
    run = report.named(records, name)
    keys = run["run_keys"]
    if absent := [stage for stage in ("train", "review") if stage not in keys]:
        raise MoelineError(f"Run {run['run_id']} is only {run['status']}: a proposal needs its stage {absent[0]}. Run `moeline stage {absent[0]}` first.")
    trained, reviewed = (_recorded(env, stage, keys[stage]) for stage in ("train", "review"))
    if not trained.metrics.get("tokens"):
        raise MoelineError(f"The training of run {run['run_id']} does not say how many tokens it read. Train it again.")
    if "failure_groups" not in reviewed.outputs:
        raise MoelineError(f"Run {run['run_id']} was reviewed before failures were grouped. Run `moeline stage review --recipe {trained.recipe}` again.")
    rows = delta.dataset(env, reviewed.table("failure_groups"), where_in=[reviewed.run_key]).to_table().to_pylist()
    prepared = records.corpus(trained.inputs.get("sequences")).results
    packed = [r for r in prepared if r.stage == "pack"]
    corpus = _tokens_by_source(packed, run["run_id"])
    measured = measure(env, records.costs_of, run, trained, prepared, sum(corpus.values()))
    groups = tuple(sorted(rows, key=lambda g: g["failure_group"]))
    return Reviewed(run, trained, corpus, groups, packed[0].config_hash, measured)


def _recorded(env: Environment, stage: str, run_key: str) -> StageResult:
    found = results.find(env, stage, run_key)
    if found is None:
        raise MoelineError(f"Stage {stage} of run key {run_key} is no longer recorded. Run it again.")
    return found


def _tokens_by_source(packed: Sequence[StageResult], run_id: str) -> dict[str, int]:
    """Training tokens of the corpus by source, as stage pack counted them in the rows of ``sequences`` it wrote."""
    total: Counter[str] = Counter()
    for day in packed:
        for key, tokens in (day.metrics.get("tokens_by_source") or {}).items():
            split, _, source = key.partition("/")
            if split == "train":
                total[source] += int(tokens)
    if not sum(total.values()):
        raise MoelineError(f"How many tokens of which source run {run_id} could read is not recorded with its days. Run stage pack for them again.")
    return dict(sorted(total.items()))


# -- what is proposed ---------------------------------------------------------------------------------------------------------


def wanted(run: Reviewed, group: Mapping[str, Any]) -> dict[str, float]:
    """Tokens by source that RULE gives one group; {'': tokens} where no training document is like it."""
    share = run.tokens * group["n"] / run.failures
    sources = json.loads(group["sources"])
    return {one["source"]: share * one["share"] for one in sources} if sources else {"": share}


def plan(run: Reviewed, groups: Sequence[Mapping[str, Any]], *, only_nearest: bool = False) -> dict[str, Any]:
    """What to train more on for ``groups`` together, as a recipe can express it, and its price.

    ``sources``: per source ``wanted`` tokens, of them ``tokens`` the corpus holds untrained and ``to_land`` it does not, and ``gets``, what the
    recipe trains on beyond the run. ``recipe_tokens``: what the recipe trains on in all, ``weights``: tokens of every source; both None where the
    corpus has nothing to give.
    """
    asked: Counter[str] = Counter()
    for group in groups:
        asked.update(wanted(run, group))
    rows = []
    for source, amount in sorted(asked.items(), key=lambda one: (-one[1], one[0])):
        left = run.left(source)
        given = min(math.ceil(amount), left)
        rows.append({"source": source, "wanted": math.ceil(amount), "left": left, "tokens": given, "to_land": math.ceil(amount) - given})
    given = {row["source"]: row["tokens"] for row in rows if row["tokens"]}
    weights = {s: run.seen(s) + given.get(s, 0) for s in run.corpus if s in given or (not only_nearest and run.seen(s))} if given else None
    total, read = _recipe_tokens(run, weights) if weights else (None, {})
    for row in rows:
        row["gets"] = read[row["source"]] - run.seen(row["source"]) if row["source"] in read else 0
    to_land = sum(row["to_land"] for row in rows)
    held = sum(run.corpus[s] for s in weights or ())
    packed_so = base_recipe(run).pack.separate_sources
    return {
        "sources": rows, "tokens": sum(given.values()), "to_land": to_land, "recipe_tokens": total, "weights": weights,
        "added_tokens": total - run.tokens if total else 0, "only_sources": sorted(weights) if only_nearest and weights else None,
        # other sources are another corpus, prepared anew; other sequences of the same one only packed
        **run.measured.price(total, total - run.tokens if total else 0, held if only_nearest else 0, to_land, packed=0 if only_nearest or packed_so else held),
    }  # fmt: skip


def _epochs(run: Reviewed, source: str) -> float:
    """How often a recipe may read ``source``: once, or less where the run's recipe says so."""
    caps = dict(base_recipe(run).train.mixture.max_epochs)
    return min(1.0, caps.get(source, caps.get("*", 1.0)))


def mixture(run: Reviewed, weights: Mapping[str, int]) -> Mixture:
    """The mixture that gives every source its tokens, and none more than a pass."""
    lower = tuple((s, epochs) for s in sorted(weights) if (epochs := _epochs(run, s)) < 1)
    return Mixture(phases=(Phase(weights=tuple(sorted(weights.items()))),), max_epochs=(*lower, ("*", 1.0)))


def _recipe_tokens(run: Reviewed, weights: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """(fewest tokens, in whole steps, that ``weights`` add up to, tokens read of every source in them); a step less where a cap would end the training."""
    train = base_recipe(run).train
    length = train.model.max_seq_len
    sizes = {s: SourceSize(sequences=-(-held // length), tokens=held) for s, held in run.corpus.items() if held}
    steps = max(1, math.ceil(sum(weights.values()) / train.tokens_per_step))
    while True:
        try:
            planned = Plan(mixture(run, weights), sizes, steps=steps, batch_sequences=train.batch_sequences, seed=train.seed)
            break
        except ValueError:
            if steps == 1:
                raise
            steps -= 1
    read = planned.before(steps)
    return steps * train.tokens_per_step, {s: round(read[s] * sizes[s].tokens / sizes[s].sequences) for s in weights}


def base_recipe(run: Reviewed) -> recipes.Recipe:
    """The run's own recipe as it is now; raises MoelineError when it is no longer there."""
    return recipes.load(run.trained.recipe, home=run.measured.home)


def describe(env: Environment, name: str) -> dict[str, Any]:
    """What ``moeline propose RUN --json`` prints and the page shows: every failure group of the run with its proposal."""
    run = find(env, name)
    key = run.trained.run_key
    groups = []
    for row in run.groups:
        shown = {k: row[k] for k in ("failure_group", "benchmark", "category", "subset", "verdict", "n", "n_items", "words")}
        number = row["failure_group"]
        proposal = plan(run, [row])
        command = f"moeline propose {key[:12]} --group {number} --as-recipe {suggested_name(run, [number])}" if proposal["recipe_tokens"] else None
        nearest = json.loads(row["nearest_documents"])
        groups.append({**shown, "share_of_failures": row["n"] / run.failures, "nearest_documents": nearest, "proposal": proposal, "command": command})
    corpus = [{"source": s, "tokens": n, "seen": run.seen(s), "left": n - run.seen(s)} for s, n in run.corpus.items()]
    return {
        "run_id": run.about["run_id"], "train_key": key, "recipe": run.trained.recipe, "tokens": run.tokens, "corpus_tokens": sum(run.corpus.values()),
        "failures": run.failures, "corpus": corpus, "price": run.measured.about(), "rule": RULE, "mixture": MIXTURE, "notes": notes(run), "groups": groups,
    }  # fmt: skip


def notes(run: Reviewed) -> list[str]:
    """What a person should know before running a recipe made of this run."""
    recipe = base_recipe(run)
    found = []
    if run.trained.config_hash and run.trained.config_hash != recipe.config_hash("train"):
        found.append(f"Recipe {recipe.name} has changed since this run was trained; a recipe made from it takes its settings of now.")
    if run.packed_as and run.packed_as != recipe.config_hash("pack"):
        found.append(f"This run's corpus was prepared otherwise than recipe {recipe.name} asks now (with --gauntlet-data?). Give the same when you run it.")
    return found


def suggested_name(run: Reviewed, numbers: Sequence[int]) -> str:
    """A name for the recipe of these groups that tells where it comes from."""
    recipe = run.trained.recipe if own_recipes.NAME.fullmatch(run.trained.recipe) else "own"
    return f"{recipe[:30]}-{run.trained.run_key[:6].lower()}-g{'-'.join(map(str, sorted(numbers)[:5]))}"


# -- the recipe ---------------------------------------------------------------------------------------------------------------


def propose(env: Environment, name: str, numbers: Sequence[int], *, as_recipe: str | None, only_nearest: bool, budget_usd: float | None) -> dict[str, Any]:
    """The proposal for some groups together (all when ``numbers`` is empty), written as the recipe ``as_recipe`` if that is given.

    Raises MoelineError for a group that is not there, or when the corpus holds no untrained text of what is proposed.
    """
    run = find(env, name)
    known = {g["failure_group"]: g for g in run.groups}
    if unknown := sorted(set(numbers) - set(known)):
        have = f"0 to {max(known)}" if known else "none: the model failed nowhere"
        raise MoelineError(f"Run {run.about['run_id']} has no failure group {', '.join(map(str, unknown))}; there are {have}.")
    chosen = sorted(set(numbers) or known)
    if not chosen:
        raise MoelineError(f"Run {run.about['run_id']} failed nowhere, so there is nothing to propose.")
    found = plan(run, [known[n] for n in chosen], only_nearest=only_nearest)
    if found["recipe_tokens"] is None:
        raise MoelineError(
            f"The corpus of run {run.about['run_id']} holds no text like these failures that it has not trained on: {_to_land(found)}. "
            "Put files into the landing zone, prepare them (moeline backfill), build again, and propose from that run."
        )
    own = _own(env, run, chosen, found, budget_usd)
    budget = own.recipe("proposal").budget_usd
    written = own_recipes.save(env.home, as_recipe, own) if as_recipe is not None else False
    return {
        "run_id": run.about["run_id"], "groups": chosen, "proposal": found, "recipe": as_recipe, "written": written, "base": own.base,
        "budget_usd": budget, "over_budget": found["build_usd"] > budget, "price": run.measured.about(), "rule": RULE, "mixture": MIXTURE, "notes": notes(run),
        "next": f"moeline run --recipe {as_recipe}" if as_recipe is not None else None,
    }  # fmt: skip


def _own(env: Environment, run: Reviewed, numbers: Sequence[int], found: Mapping[str, Any], budget_usd: float | None) -> OwnRecipe:
    """The recipe: the run's own with more tokens, weighed by source. One made from an own recipe names the built-in one below it."""
    base, sources, budget = run.trained.recipe, None, None
    if base not in recipes.RECIPES:
        before = own_recipes.read(env.home, base)
        base, sources, budget = before.base, before.sources, before.budget_usd
    if found["only_sources"]:
        sources = tuple(found["only_sources"])
    groups = f"failure group{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    why = f"{found['tokens']:,} tokens more for {groups} of run {run.trained.run_key[:12]}"
    return OwnRecipe(
        base=base, tokens=found["recipe_tokens"], sources=sources, mixture=mixture(run, found["weights"]),
        budget_usd=budget if budget_usd is None else budget_usd, why=why[: own_recipes.MAX_WHY],
    )  # fmt: skip


def _to_land(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{row['to_land']:,} tokens of {_plain(row['source']) or 'a source that is not there yet'}" for row in found["sources"] if row["to_land"])


# -- as text ------------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Text of the corpus for a terminal: nothing that would move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _usd(value: float | None) -> str:
    if value is None:
        return "no price"
    if value and abs(value) < 0.00005:
        return "<$0.0001"
    return f"${value:,.4f}" if abs(value) < 1 else f"${value:,.2f}"


def _proposal_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in found["sources"]:
        held = f"{row['tokens']:,} tokens more of {_plain(row['source'])}" if row["tokens"] else ""
        land = f"{row['to_land']:,} tokens of {_plain(row['source']) or 'text like this, from a source that is not there yet,'} must be landed"
        lines.append(f"  {'; '.join(part for part in (held, land if row['to_land'] else '') if part)}")
    if found["landing_usd"] is not None:
        lines.append(f"  preparing what is landed: {_usd(found['landing_usd'])}")
    if found["recipe_tokens"] is not None:
        only = f" of {', '.join(map(_plain, found['only_sources']))} only, prepared anew" if found["only_sources"] else ""
        gets = ", ".join(f"{row['gets']:,} of {_plain(row['source'])}" for row in found["sources"] if row["tokens"])
        shares = ", ".join(f"{_plain(s)} {weight / sum(found['weights'].values()):.0%}" for s, weight in found["weights"].items())
        lines.append(f"  as a recipe: {found['recipe_tokens']:,} tokens{only} ({found['added_tokens']:+,}; more than the run: {gets}), weighed {shares}")
        lines.append(f"  price: {_usd(found['added_usd'])} for the added tokens, {_usd(found['build_usd'])} for the whole build")
    if found["not_priced"] and (found["recipe_tokens"] is not None or found["not_priced"] == ["prepare"]):
        lines.append(f"  not in these prices, because not measured in that run: {', '.join(found['not_priced'])}")
    return lines


def _end_lines(found: Mapping[str, Any]) -> list[str]:
    price = found["price"]
    per_million = ", ".join(
        f"{what} {_usd(None if price[key] is None else 1e6 * price[key])}"
        for what, key in (("training", "train_per_token"), ("proxies", "forecast_per_token"), ("preparing", "prepare_per_token"))
    )
    measured = (
        f"Prices: measured in run {_plain(price['from_run'])}, at the list prices of environment {price['environment']}; per million tokens: {per_million}."
    )
    return [measured, found["rule"], found["mixture"], *(f"Note: {note}" for note in found["notes"])]


def render(found: Mapping[str, Any]) -> str:
    """Every group with its proposal, as lines for a terminal."""
    lines = [
        f"Run {_plain(found['run_id'])} (recipe {_plain(found['recipe'])}): {found['failures']:,} failures in {len(found['groups'])} groups; trained on "
        f"{found['tokens']:,} tokens of a corpus of {found['corpus_tokens']:,}"
    ]
    lines += [f"  {_plain(c['source'])}: {c['tokens']:,} tokens, {c['left']:,} of them not trained on" for c in found["corpus"]]
    for g in found["groups"]:
        what = " / ".join(_plain(part) for part in (g["benchmark"], g["subset"], g["verdict"]) if part)
        lines += ["", f"Group {g['failure_group']}: {what}: {g['n']} of {g['n_items']} failed, {g['share_of_failures']:.0%} of all failures"]
        lines += [f"  words: {_plain(', '.join(g['words']))}"] if g["words"] else []
        lines += [f"  near: {d['cosine']:.2f} {_plain(d['source'])} {_plain(d['uri'])}" for d in g["nearest_documents"][:3]]
        lines += _proposal_lines(g["proposal"])
        lines += [f"  $ {g['command']}"] if g["command"] else []
    return "\n".join([*lines, "", *_end_lines(found)]) + "\n"


def render_proposed(found: Mapping[str, Any]) -> str:
    """What was proposed for the chosen groups, and the recipe that was written."""
    groups = f"group{'s' if len(found['groups']) > 1 else ''} {', '.join(map(str, found['groups']))}"
    lines = [f"Failure {groups} of run {_plain(found['run_id'])}:", *_proposal_lines(found["proposal"])]
    if found["recipe"]:
        lines.append(f"Recipe {found['recipe']} {'written' if found['written'] else 'was there already, unchanged'}. Build it with: {found['next']}")
    if found["over_budget"]:
        lines.append(f"That is above the budget of ${found['budget_usd']:,.2f}: the build will stop or ask before training. --budget USD writes another one.")
    return "\n".join([*lines, *_end_lines(found)]) + "\n"
