"""Clean: ``documents`` -> ``clean_documents`` (normalised, redacted, with every measured score) and ``rejections`` (every broken rule).

Change here: order of steps, how texts are normalised. Not here: rules and thresholds (jobs/stages/rules), which rules a source
gets and which licences may train (CleanConfig), licence expressions (jobs/stages/rules/licence.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from jobs.config import CleanConfig
from jobs.contract import MoelineError, StageOutput, Tools
from jobs.stages import rules
from jobs.stages.rules.licence import LicenceList
from jobs.stages.rules.normalise import normalise
from jobs.stages.rules.redact import kinds, redact

ENGINE = "spark"
READS = {"documents": "interval"}
WRITES = ("clean_documents", "rejections")
REVISION = 2

_BATCH_BYTES = 4 << 20
_ALL_BY_CHANCE = 100  # so many documents are not all poor by chance
_JUDGED = (
    "doc_id string, source string, uri string, licence string, text string, n_bytes bigint, scores string, "
    "broken array<struct<rule:string,value:double,threshold:double,detail:string>>"
)
_EMPTY = rules.Rule("text.bytes", lambda features: features.n_bytes, minimum=1)  # holds for every source: normalising can leave nothing


def rules_by_source(config: CleanConfig) -> dict[str, tuple[rules.Rule, ...]]:
    """The rules of every configured source (``*``: all others). Raises MoelineError for unknown or ambiguous names."""
    chosen: dict[str, tuple[rules.Rule, ...]] = {}
    for source, names in config.rules:
        if source in chosen:
            raise MoelineError(f"CleanConfig.rules names source {source!r} twice. Put all its rule sets into one entry.")
        chosen[source] = (_EMPTY, *rules.select(names))
    if "*" not in chosen:
        raise MoelineError("CleanConfig.rules has no entry '*' for all other sources. Add one, e.g. ('*', ('gopher_quality',)), or ('*', ()) to keep all.")
    return chosen


def run(config: CleanConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Judge every document once; kept + rejected = documents.

    Raises:
        MoelineError: an unknown rule set or licence identifier in the config, before any row is read.
    """
    from pyspark.sql import functions as f

    chosen = rules_by_source(config)
    LicenceList(config.allowed_licences, config.allow_unknown_licence)
    redacted = kinds(config.redact)
    columns = ("doc_id", "source", "uri", "licence", "text")
    # One landing file may be one partition; judging is the expensive part and rows are independent.
    documents = inputs["documents"].select(*columns).repartition(f.col("doc_id"))
    judged = tools.materialise(documents.mapInArrow(partial(_judge_batches, config=config), _JUDGED))
    kept = judged.where(f.size("broken") == 0).select("doc_id", "source", "uri", "licence", "text", "n_bytes", "scores")
    broken = judged.where(f.size("broken") > 0).select("doc_id", "source", f.explode("broken").alias("b"))
    rejections = broken.select("doc_id", "source", f.lit("clean").alias("stage"), "b.rule", "b.value", "b.threshold", "b.detail")
    metrics = {**_metrics(judged, chosen), "redacted": _redacted(judged, redacted)}
    dead = metrics["rules_without_rejection"]
    noticed = {("rejections", "EveryRuleRejectsSomething"): {"rules_without_rejection": dead, "documents": metrics["documents"]}} if dead else {}
    return StageOutput({"clean_documents": kept, "rejections": rejections}, metrics, noticed, _refused(metrics))


def _refused(metrics: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """A day may end without a document (its few were poor, or it was forgotten); rules that reject everything of a larger one are misconfigured."""
    if metrics["kept"] or metrics["documents"] < _ALL_BY_CHANCE:
        return {}
    return {("clean_documents", "SomethingIsKept"): {"documents": metrics["documents"], "rejected_by_rule": metrics["rejected_by_rule"]}}


def _metrics(judged: Any, chosen: Mapping[str, tuple[rules.Rule, ...]]) -> dict[str, Any]:
    """Counts of the day, from one pass: a kept document gives one row without a rule, a rejected one a row per broken rule."""
    from pyspark.sql import functions as f

    rows = judged.select("source", "n_bytes", "licence", f.posexplode_outer("broken.rule").alias("position", "rule"))
    counts = rows.groupBy("source", "rule").agg(
        f.count(f.lit(1)).alias("n"),
        f.sum((f.col("position") == 0).cast("int")).alias("rejected"),
        f.sum("n_bytes").alias("bytes"),
        f.sum(f.col("licence").isNull().cast("int")).alias("unknown_licence"),
    )
    by_source: dict[str, dict[str, int]] = {}
    by_rule: dict[str, int] = {}
    unknown_licence = 0
    for row in counts.collect():
        source = by_source.setdefault(row["source"], {"documents": 0, "kept": 0, "bytes": 0})
        if row["rule"] is None:
            source["documents"] += row["n"]
            source["kept"] += row["n"]
            source["bytes"] += row["bytes"]
            unknown_licence += row["unknown_licence"]
        else:
            source["documents"] += row["rejected"]
            by_rule[row["rule"]] = by_rule.get(row["rule"], 0) + row["n"]
    documents, kept = (sum(source[name] for source in by_source.values()) for name in ("documents", "kept"))
    # A rule that never fires may be a dead one (a misspelt name went unnoticed for years in a public pipeline): say so.
    applied = {rule.name for source in by_source for rule in chosen.get(source, chosen["*"]) if rule.may_reject}
    return {
        "documents": documents,
        "kept": kept,
        "rejected": documents - kept,
        "bytes": sum(source["bytes"] for source in by_source.values()),
        "kept_unknown_licence": unknown_licence,
        "by_source": dict(sorted(by_source.items())),
        "rejected_by_rule": dict(sorted(by_rule.items())),
        "rules_without_rejection": sorted(applied - by_rule.keys()),
    }


def _redacted(judged: Any, names: tuple[str, ...]) -> dict[str, int]:
    """How many values of each kind were replaced in the kept documents."""
    from pyspark.sql import functions as f

    if not names:
        return {}
    counts = [f.sum(f.get_json_object("scores", f"$['pii.{name}']").cast("double")).alias(name) for name in names]
    found = judged.where(f.size("broken") == 0).agg(*counts).collect()[0]
    return {name: int(found[name] or 0) for name in sorted(names)}


def _judge_batches(batches: Iterable[Any], *, config: CleanConfig) -> Iterator[Any]:
    """Arrow batches of documents -> Arrow batches of judged documents; the text travels on only when kept."""
    import pyarrow as pa

    judge = Judge(config)
    broken = pa.list_(pa.struct([("rule", pa.string()), ("value", pa.float64()), ("threshold", pa.float64()), ("detail", pa.string())]))
    names = ("doc_id", "source", "uri", "licence", "text", "n_bytes", "scores", "broken")
    types = (pa.string(), pa.string(), pa.string(), pa.string(), pa.string(), pa.int64(), pa.string(), broken)
    schema = pa.schema(list(zip(names, types, strict=True)))

    def batch() -> Any:
        return pa.record_batch([pa.array(column, field.type) for column, field in zip(zip(*held, strict=True), schema, strict=True)], schema=schema)

    held: list[tuple[Any, ...]] = []
    size = 0
    for documents in batches:
        columns = [documents.column(name) for name in names[:5]]
        for i in range(documents.num_rows):
            doc_id, source, uri, licence, text = (column[i].as_py() for column in columns)
            held.append((doc_id, source, uri, licence, *judge(source, licence, text)))
            size += held[-1][5]
            if size >= _BATCH_BYTES:
                yield batch()
                held, size = [], 0
    if held:
        yield batch()


class Judge:
    """Normalises and judges single documents under one config."""

    def __init__(self, config: CleanConfig):
        self._rules = rules_by_source(config)
        self._sets = dict(config.rules)
        self._redact = kinds(config.redact)
        self._identify = rules.language.Identifier()
        self._licences = LicenceList(config.allowed_licences, config.allow_unknown_licence)

    def __call__(self, source: str, licence: str | None, text: str) -> tuple[str | None, int, str, list[dict[str, Any]]]:
        """Normalised text (None when rejected), its UTF-8 bytes, scores as JSON, and one entry per broken rule."""
        key = source if source in self._rules else "*"
        names = self._sets[key]
        text, redacted = redact(normalise(text, is_code="code" in names), self._redact)
        features = rules.features(names, text, self._identify)
        broken: list[dict[str, Any]] = []
        refused = self._licences.refuse(licence)
        if refused:
            broken.append({"rule": refused, "value": None, "threshold": None, "detail": licence})
        scores: dict[str, float | str] = {f"pii.{kind}": n for kind, n in redacted.items()}
        if any(map(rules.language.is_language_set, names)):
            scores["language"] = rules.language.language(features)
        for rule in self._rules[key]:
            value = float(rule.measure(features))
            scores[rule.name] = round(value, 6)
            limit = rule.broken_limit(value)
            if limit is not None:
                broken.append({"rule": rule.name, "value": value, "threshold": float(limit), "detail": None})
        kept = None if broken else features.text
        return kept, features.n_bytes, json.dumps(scores, sort_keys=True, allow_nan=False), broken
