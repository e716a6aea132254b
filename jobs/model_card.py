"""What a model card says of a registered model: gathered from recorded results and the tables at the versions they name.

What was not measured, or can no longer be read because a document was forgotten, is None here and "not measured" on the card; it is never 0.
No text and no name of a document or an item gets in, only counts and names of sources, licences, rules and benchmarks: a card is signed with
its model and cannot be purged later (infra/decisions/0025). Change here: which facts. Not here: how they read (jobs/model_card_text.py).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expectations.tables import FUNNEL
from jobs.config import PHASES
from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, report, results

JUDGED = ("checkpoints", "scores", "verdicts", "forecasts")  # inputs of stage register: their writers are train, evaluate, review, forecast
PREPARED = ("documents", "clean_documents", "unique_documents", "training_documents", "sequences")  # table versions named per day
GROUPS = 10  # failure groups on a card, most failures first
_MEASURES = ("documents", "bytes", "tokens")
_TRAINED = (
    "steps", "tokens", "epochs", "corpus_tokens", "loss", "held_out_loss", "unigram_loss", "flops", "mfu", "tokens_per_second", "wall_seconds_training",
    "resumed_from_step", "skipped_steps", "spikes", "worst_expert_load", "ended_early", "steps_planned", "params_total", "params_active", "tokenizer_id",
)  # fmt: skip
_SCORES = (
    "benchmark",
    "category",
    "shots",
    "n",
    "metric",
    "accuracy",
    "stderr",
    "chance",
    "best_constant",
    "score",
    "accuracy_clean",
    "n_contaminated",
    "mode",
)
Row = Mapping[str, Any]


def facts(env: Environment, inputs: Mapping[str, str], *, model_name: str, registration: Row | None = None, run_key: str | None = None) -> dict[str, Any]:
    """Plain JSON values. ``inputs``: what stage register read (table -> name@version). ``registration``: the row of ``registrations``, once there is one.

    Raises MoelineError when the training that ``inputs`` name is not recorded here.
    """
    stages = {r.stage: r for r in (results.writer_of(env, TableVersion.parse(inputs[name])) for name in JUDGED if name in inputs)}
    if "train" not in stages:
        raise MoelineError("Asked for the card of a model whose registration names no checkpoint. Run stage register again.")
    train, records = stages["train"], report.Records(env)
    checkpoint = _only(_rows(env, train, "checkpoints")) or {}
    config = json.loads(checkpoint.get("config") or "{}")
    corpus = sorted(records.corpus(train.inputs.get("sequences")).results, key=lambda r: (str(r.interval), r.stage))
    own = {**stages, **_register(env, run_key)}
    return {
        "name": model_name, "version": registration and registration["model_version"], "recipe": train.recipe,
        "registered_at": registration and registration["registered_at"].isoformat(timespec="seconds"),
        "gates": json.loads(registration["gates"]) if registration else None, "run_keys": {stage: r.run_key for stage, r in sorted(own.items())},
        "code_revisions": sorted({r.code_revision for r in own.values() if r.code_revision}),
        "checkpoint": {name: checkpoint.get(name) for name in ("uri", "sha256", "step")}, "data": _data(env, corpus, train),
        "model": config.get("model"), "training": {k: v for k, v in config.items() if k != "model"} or None,
        "trained": {name: train.metrics.get(name) for name in _TRAINED}, "hardware": _hardware(records.costs_of[train.run_key]),
        "forecast": _forecast(env, stages), "scores": _scores(env, stages.get("evaluate")), "failures": _failures(env, stages.get("review")),
        "cost": _cost(records, corpus, own),
    }  # fmt: skip


def of_version(env: Environment, name: str, version: str) -> dict[str, Any]:
    """The facts of a registered version (a number or ``champion``). Raises MoelineError when there is none, or its registration is not recorded."""
    row = registration(env, name, version)
    found = results.find(env, "register", row["run_key"])
    if found is None:
        raise MoelineError(f"The registration of {name}/{row['model_version']} is not recorded in this home (run key {row['run_key']}). Give the right --home.")
    return facts(env, found.inputs, model_name=name, registration=row, run_key=row["run_key"])


def registration(env: Environment, name: str, version: str) -> dict[str, Any]:
    """The row of ``registrations`` of a version: a number, with or without v, or ``champion``. Raises MoelineError when there is none."""
    rows = sorted((r for r in delta.rows(env, "registrations") if r["model_name"] == name), key=lambda r: r["registered_at"])
    wanted = [r for r in rows if (r["promoted"] if version == "champion" else r["model_version"] == version.removeprefix("v"))]
    if not wanted:
        known = ", ".join(sorted({r["model_version"] for r in rows}, key=lambda v: (len(v), v))) or "none yet"
        raise MoelineError(f"No model {name}/{version} is registered here; versions of {name}: {known}. `moeline report` lists the registered models.")
    return wanted[-1]


def _register(env: Environment, run_key: str | None) -> dict[str, StageResult]:
    found = results.find(env, "register", run_key) if run_key else None
    return {"register": found} if found else {}


def _only(rows: Sequence[Row] | None) -> Row | None:
    return rows[0] if rows else None


def _rows(env: Environment, result: StageResult | None, table: str) -> list[dict[str, Any]] | None:
    """The rows a result published, or None: it did not run, wrote no such table, or its files are removed."""
    if result is None or table not in result.outputs:
        return None
    try:
        return list(delta.dataset(env, result.table(table), where_in=[str(result.interval or result.run_key)]).to_table().to_pylist())
    except MoelineError:
        return None


# -- data -------------------------------------------------------------------------------------------------------------------


def _data(env: Environment, corpus: Sequence[StageResult], train: StageResult) -> dict[str, Any]:
    """What the model could read: per day the table versions, per source what became of its documents, licences, copies and contamination."""
    days: dict[str, dict[str, str]] = defaultdict(dict)
    for result in corpus:
        days[str(result.interval)].update({name: version for name, version in result.outputs.items() if name in PREPARED})
    counted = {str(r.interval): rows for r in corpus if r.stage == "summarise" and (rows := _rows(env, r, "statistics")) is not None}
    rows = [row for found in counted.values() for row in found]
    read = {
        source: {"tokens": n, "epochs": train.metrics.get("epochs_by_source", {}).get(source)}
        for source, n in train.metrics.get("tokens_by_source", {}).items()
    }
    return {
        "sequences": train.inputs.get("sequences"), "days": {day: days[day] for day in sorted(days)}, "not_counted": sorted(set(days) - set(counted)),
        "funnel": _funnel(rows), "read": read or None,
        **{what: _buckets(rows, what) if rows else None for what in (
            "landed_by_licence", "kept_by_licence", "kept_by_language", "rejected_by_first_rule", "duplicate_by_scope", "contaminated_by_benchmark",
        )},
        "contaminated_items": _contaminated_items(env, corpus), "cut_documents": _cut(env, corpus),
    }  # fmt: skip


def _funnel(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, int | None]]] | None:
    """Source -> end -> documents, bytes, tokens over all days; a measure that no day has is None."""
    found: dict[str, dict[str, dict[str, int | None]]] = {}
    for row in rows:
        if row["what"] in FUNNEL:
            end = found.setdefault(row["source"], {}).setdefault(row["what"], dict.fromkeys(_MEASURES))
            for measure in _MEASURES:
                if row[measure] is not None:
                    end[measure] = (end[measure] or 0) + row[measure]
    return {source: found[source] for source in sorted(found)} or None


def _buckets(rows: Iterable[Row], what: str) -> list[dict[str, Any]]:
    """Documents per source and bucket, most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row["what"] == what:
            counts[row["source"], row["bucket"]] += row["documents"]
    return [{"source": s, "bucket": b, "documents": n} for (s, b), n in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]


def _contaminated_items(env: Environment, corpus: Sequence[StageResult]) -> dict[str, dict[str, int]] | None:
    """Benchmark -> items that the corpus held by the rule that acts, and those that what is left to train on still holds."""
    held: dict[str, set[str]] = defaultdict(set)
    left: dict[str, set[str]] = defaultdict(set)
    for result in (r for r in corpus if r.stage == "decontaminate"):
        rows = _rows(env, result, "contaminated_items")
        if rows is None:  # of one day: the numbers of all days are not known
            return None
        for row in rows:
            if row["acts"] and row["contaminated"]:
                held[row["benchmark"]].add(row["item_id"])
            if row["acts"] and row["still_trains"]:
                left[row["benchmark"]].add(row["item_id"])
    decided = any(r.stage == "decontaminate" for r in corpus)
    return {name: {"items": len(held[name]), "still_train": len(left[name])} for name in sorted(held.keys() | left.keys())} if decided else None


def _cut(env: Environment, corpus: Sequence[StageResult]) -> int | None:
    """Documents that stayed without the passages that benchmark items quote."""
    cut: set[tuple[str, str]] = set()
    known = [(str(r.interval), _rows(env, r, "contamination")) for r in corpus if r.stage == "decontaminate"]
    for day, rows in known:
        if rows is None:
            return None
        cut |= {(day, row["doc_id"]) for row in rows if row["action"] == "cut_passage"}
    return len(cut) if known else None


# -- what it reached and cost -----------------------------------------------------------------------------------------------


def _forecast(env: Environment, stages: Mapping[str, StageResult]) -> list[dict[str, Any]] | None:
    """Every metric that was forecast, with its 95 % interval, the naive forecast and the outcome (None where it was not reached, or not comparable)."""
    rows = _rows(env, stages.get("forecast"), "forecasts")
    train = stages["train"]
    overall = next((r for r in _rows(env, stages.get("evaluate"), "scores") or () if r["benchmark"] == "**"), {})
    reached = {
        "loss": train.metrics.get("held_out_loss"), "accuracy": overall.get("accuracy"), "cost_usd": train.cost_usd, "wall_seconds": train.wall_seconds,
    }  # fmt: skip
    if train.metrics.get("ended_early"):  # another training than the one that was forecast
        reached = {}
    shown = ("metric", "predicted", "low", "high", "naive", "content_hash")
    return None if rows is None else [{**{k: row[k] for k in shown}, "outcome": reached.get(row["metric"])} for row in sorted(rows, key=lambda r: r["metric"])]


def _scores(env: Environment, evaluated: StageResult | None) -> list[dict[str, Any]] | None:
    rows = _rows(env, evaluated, "scores")
    return None if rows is None else [{k: row.get(k) for k in _SCORES} for row in sorted(rows, key=lambda r: (r["benchmark"], r["category"]))]


def _failures(env: Environment, review: StageResult | None) -> dict[str, Any] | None:
    """Verdicts per task and the largest groups of failures. The review's sentences and words are left out: they may quote documents."""
    rows, groups = _rows(env, review, "failures"), _rows(env, review, "failure_groups")
    if review is None or rows is None:
        return None
    named = ("failure_group", "benchmark", "category", "subset", "verdict", "n", "n_items")
    return {
        "tasks": [{"benchmark": r["benchmark"], "n": r["n"], "n_failed": r["n_failed"], "verdicts": json.loads(r["verdicts"])} for r in rows],
        "groups": None if groups is None else [
            {**{k: g[k] for k in named}, "sources": json.loads(g["sources"])} for g in sorted(groups, key=lambda g: g["failure_group"])[:GROUPS]
        ],
        "n_groups": None if groups is None else len(groups), "key_suspects": review.metrics.get("key_suspects"),
    }  # fmt: skip


def _hardware(charges: Sequence[Row]) -> list[str] | None:
    """What the attempts of the training held, each once."""
    return sorted({f"{c['x_Cores']:g} cores, {c['x_MemoryGib']:g} GiB, {c['x_Gpus']:g} GPUs" for c in charges}) or None


def _cost(records: report.Records, corpus: Sequence[StageResult], own: Mapping[str, StageResult]) -> dict[str, Any]:
    """Dollars and kWh of every attempt by the phase of its stage, failed ones too, corrections included; a phase without a charge is None."""
    stages = {**{r.run_key: r.stage for r in corpus}, **{r.run_key: r.stage for r in own.values()}}
    asked = list(dict.fromkeys(PHASES[stage] for stage in (*PHASES,) if stage in stages.values()))
    of_phase: dict[str, list[Row]] = defaultdict(list)
    for key, stage in stages.items():
        of_phase[PHASES[stage]] += records.costs_of[key]
    charges = [charge for phase in asked for charge in of_phase[phase]]
    return {
        "phases": {phase: _sums(of_phase[phase]) for phase in asked}, "total": _sums(charges) if all(of_phase[phase] for phase in asked) else None,
        "wasted_usd": sum(c["BilledCost"] for c in charges if c["x_Outcome"] in ("failed", "killed")) if charges else None,
        "without_charges": sorted({stage for key, stage in stages.items() if not records.costs_of[key]}),
        "currency": sorted({c["BillingCurrency"] for c in charges}), "energy_methods": sorted({c["x_EnergyMethod"] for c in charges if c["x_EnergyMethod"]}),
    }  # fmt: skip


def _sums(charges: Sequence[Row]) -> dict[str, float] | None:
    """Charges added up, or None without any: nobody measured it. Energy is known only where every charge says how it was estimated."""
    if not charges:
        return None
    known = all(c["x_EnergyMethod"] for c in charges)
    return {
        "cost_usd": sum(c["BilledCost"] for c in charges), "energy_kwh": sum(c["x_EnergyKwh"] for c in charges) if known else None,
        "wall_seconds": sum(c["x_WallSeconds"] for c in charges), "attempts": len({c["x_AttemptId"] for c in charges}),
    }  # fmt: skip
