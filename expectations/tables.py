"""Every table of the warehouse: columns, key, partition and rules. This file is the contract; change a column here first.

Another set of columns is another ``schema_version`` with a migration (migrations.py), because homes hold tables of every release; a test says so.

Column types are Arrow type names (``string int64 int32 float64 bool binary timestamp list<int32> list<string>``); timestamps are UTC
microseconds. A rule is one Great Expectations expectation; severity ``error`` refuses the rows, ``warning`` only reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from expectations import costs


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    about: str
    nullable: bool = False


@dataclass(frozen=True)
class Rule:
    """``expectation`` is the class name in ``great_expectations.expectations``; ``arguments`` its keyword arguments."""

    expectation: str
    arguments: dict[str, Any]
    severity: str = "error"

    @property
    def name(self) -> str:
        return f"{self.expectation}({','.join(self.columns) or 'table'})"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at; none: the table as a whole."""
        single = (self.arguments.get(key) for key in ("column", "column_A", "column_B"))
        return (*(column for column in single if column), *self.arguments.get("column_list", ()))


def _unique(key: tuple[str, ...]) -> Rule:
    """The rule that ``key`` identifies a row; an empty key means there is exactly one row."""
    if not key:
        return Rule("ExpectTableRowCountToEqual", {"value": 1})
    if len(key) == 1:
        return Rule("ExpectColumnValuesToBeUnique", {"column": key[0]})
    return Rule("ExpectCompoundColumnsToBeUnique", {"column_list": list(key)})


@dataclass(frozen=True)
class Table:
    """``partition``: the column replaced as a whole by a re-run (``interval`` or ``run_key``), or "" for append-only.

    ``schema_version``: of the columns, from 1 in the first release on; stored in the Delta table (jobs/services/table_migrations.py).
    """

    name: str
    about: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    partition: str
    rules: tuple[Rule, ...] = ()
    schema_version: int = 1
    all_rules: tuple[Rule, ...] = field(init=False)

    def __post_init__(self) -> None:
        implied = [Rule("ExpectColumnValuesToNotBeNull", {"column": c.name}) for c in self.columns if not c.nullable and c.name != self.partition]
        if self.key and self.partition:
            key = tuple(k for k in self.key if k != self.partition)  # within one partition the partition column is constant
            implied.append(_unique(key))
        object.__setattr__(self, "all_rules", (*implied, *self.rules))

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)


def between(column: str, low: float | None = None, high: float | None = None, severity: str = "error") -> Rule:
    limits = {k: v for k, v in (("min_value", low), ("max_value", high)) if v is not None}
    return Rule("ExpectColumnValuesToBeBetween", {"column": column, **limits}, severity)


def one_of(column: str, *values: str) -> Rule:
    return Rule("ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)})


def at_least(rows: int, severity: str = "error") -> Rule:
    return Rule("ExpectTableRowCountToBeBetween", {"min_value": rows}, severity)


def C(name: str, type: str, about: str, nullable: bool = False) -> Column:  # noqa: N802 - reads as a table row
    return Column(name, type, about, nullable)


INTERVAL = C("interval", "string", "data day, YYYY-MM-DD")
RUN_KEY = C("run_key", "string", "identity of the stage run that wrote the row")

DOCUMENTS = Table(
    "documents", "a landed document", ("doc_id", "interval"),
    (
        C("doc_id", "string", "sha256 hex (first 32) of source, uri and text"), INTERVAL, C("source", "string", "landing folder"),
        C("uri", "string", "where the text came from"), C("licence", "string", "SPDX id or expression as given", nullable=True),
        C("text", "string", "the text as landed"), C("n_bytes", "int64", "UTF-8 bytes of text"), C("landed_file", "string", "path under landing/"),
    ),
    "interval",
    (between("n_bytes", 1), at_least(1, "warning"), Rule("ExpectColumnValueLengthsToEqual", {"column": "doc_id", "value": 32})),
)  # fmt: skip
QUARANTINE = Table(
    "quarantine", "input that could not be read", (),
    (
        INTERVAL, C("file", "string", "path under landing/"), C("offset", "int64", "byte offset of the record in the decompressed file, -1: the file"),
        C("error", "string", "reason"), C("raw", "binary", "first bytes of the record (cut)"),
    ),
    "interval",
    (at_least(0), Rule("ExpectTableRowCountToBeBetween", {"max_value": 0}, "warning")),
)  # fmt: skip
CLEAN_DOCUMENTS = Table(
    "clean_documents", "a kept document after normalising and filtering", ("doc_id", "interval"),
    (
        C("doc_id", "string", "as in documents"), INTERVAL, C("source", "string", "landing folder"), C("uri", "string", "where from"),
        C("licence", "string", "SPDX", nullable=True), C("text", "string", "normalised text"), C("n_bytes", "int64", "UTF-8 bytes of the normalised text"),
        C("scores", "string", "JSON object: every measured value by rule name"),
    ),
    "interval",
    (between("n_bytes", 1), at_least(1, "warning")),
)  # fmt: skip
REJECTIONS = Table(
    "rejections", "one row per document and rule it broke", ("doc_id", "stage", "rule", "interval"),
    (
        C("doc_id", "string", "as in documents"), INTERVAL, C("source", "string", "landing folder"), C("stage", "string", "clean"),
        C("rule", "string", "rule name"), C("value", "float64", "measured", nullable=True), C("threshold", "float64", "limit", nullable=True),
        C("detail", "string", "what could not be a number, e.g. the licence", nullable=True),
    ),
    "interval",
)  # fmt: skip
FINGERPRINTS = Table(
    "fingerprints", "LSH bands of kept documents only", ("doc_id", "band", "hash", "interval"),
    (
        INTERVAL, C("band", "int32", "0..bands-1; -1: hash of the whole normalised text; -2: of a line or paragraph, where the recipe removes repeats"),
        C("hash", "int64", "hash of the band's rows"),
        C("doc_id", "string", "kept document"),
    ),
    "interval",
)  # fmt: skip
DUPLICATES = Table(
    "duplicates", "a dropped document and the one kept in its place", ("doc_id", "interval"),
    (
        C("doc_id", "string", "dropped"), INTERVAL, C("kept_doc_id", "string", "kept"), C("kept_interval", "string", "data day of the kept one"),
        C("jaccard", "float64", "true Jaccard similarity of the shingle sets"), C("cluster_size", "int64", "documents in the cluster, this day"),
        C("scope", "string", "exact | near | exact_other_day | near_other_day | repeated_passages: too little was left without what others hold"),
        C("containment", "float64", "share of the smaller shingle set that the other holds, where the recipe decides by it", nullable=True),
    ),
    "interval",
    (
        between("jaccard", 0.0, 1.0), between("containment", 0.0, 1.0), between("cluster_size", 2),
        one_of("scope", "exact", "near", "exact_other_day", "near_other_day", "repeated_passages"),
    ),
    schema_version=2,
)  # fmt: skip
REPEATED_PASSAGES = Table(
    "repeated_passages", "a line or paragraph that a document lost because others hold it already", ("doc_id", "start", "interval"),
    (
        C("doc_id", "string", "document, kept without it or dropped"), INTERVAL, C("start", "int32", "characters before it in the text of clean_documents"),
        C("characters", "int32", "its length"), C("hash", "int64", "as in fingerprints, band -2"), C("kept_interval", "string", "data day of the document that holds it"),
        C("kept_doc_id", "string", "the first document that holds it; the document itself where it says it twice"),
    ),
    "interval",
    (between("start", 0), between("characters", 1)),
)  # fmt: skip
UNIQUE_DOCUMENTS = Table(
    "unique_documents", "a kept document after deduplication", ("doc_id", "interval"), CLEAN_DOCUMENTS.columns, "interval", (between("n_bytes", 1), at_least(1, "warning")),
)  # fmt: skip
CONTAMINATION = Table(
    "contamination", "a training document that holds words of a benchmark item", ("doc_id", "benchmark", "item_id", "interval"),
    (
        C("doc_id", "string", "training document"), INTERVAL, C("benchmark", "string", "task label"), C("item_id", "string", "item of the task"),
        C("ngram", "string", "first matched n-gram"), C("action", "string", "drop_document | cut_passage (what became of the document)"),
        C("rule", "string", "ngram | share"), C("removed_characters", "int64", "that the document lost, for all its items together; 0: not counted then"),
    ),
    "interval",
    (one_of("action", "drop_document", "cut_passage"), one_of("rule", "ngram", "share"), between("removed_characters", 0)),
    schema_version=2,
)  # fmt: skip
CONTAMINATED_ITEMS = Table(
    "contaminated_items", "a benchmark item whose n-grams a day's training documents hold, by one rule", ("benchmark", "item_id", "rule", "interval"),
    (
        INTERVAL, C("benchmark", "string", "task label"), C("item_id", "string", "item of the task"), C("rule", "string", "ngram | share"),
        C("acts", "bool", "this rule decides for the benchmark; the other one only reports"), C("n_ngrams", "int32", "different n-grams of the item"),
        C("share", "float64", "of them found in the day's training documents, before anything was dropped or cut"),
        C("threshold", "float64", "share from which the item is contaminated; 0: one n-gram that is not boilerplate"),
        C("contaminated", "bool", "by this rule and this day's documents"), C("documents", "int64", "that contaminate the item alone"),
        C("action", "string", "drop_document | cut_passage | none: what those documents had to expect"),
        C("still_trains", "bool", "contaminated by what is left to train on"),
        C("left", "list<int32>", "which of its n-grams (0.., in the item's order) that text still holds; ngram: without boilerplate"),
    ),
    "interval",
    (
        one_of("rule", "ngram", "share"), one_of("action", "drop_document", "cut_passage", "none"), between("share", 0.0, 1.0),
        between("threshold", 0.0, 1.0), between("n_ngrams", 1), between("documents", 0),
    ),
)  # fmt: skip
BENCHMARK_ITEMS = Table(
    "benchmark_items", "an own-data benchmark item made from a held-out document", ("benchmark", "item_id", "interval"),
    (
        INTERVAL, C("benchmark", "string", "task label"), C("item_id", "string", "stable id"), C("doc_id", "string", "held-out document"),
        C("source", "string", "landing folder"), C("item", "string", "JSON row in Foundry's format"),
    ),
    "interval",
)  # fmt: skip
TRAINING_DOCUMENTS = Table(
    "training_documents", "a document that may be packed, with its split", ("doc_id", "interval"),
    (
        *CLEAN_DOCUMENTS.columns[:-1], C("split", "string", "train | held_out"),
        C("piece_starts", "list<int32>", "a document that was cut: where its pieces start in text, in characters; line ends part them", nullable=True),
    ),
    "interval",
    (one_of("split", "train", "held_out"), at_least(1, "warning")),
    schema_version=2,
)  # fmt: skip
SEQUENCES = Table(
    "sequences", "one packed training sequence", ("sequence_id", "interval"),
    (
        INTERVAL, C("sequence_id", "int64", "0.. within (interval, split)"), C("split", "string", "train | held_out"),
        C("tokens", "list<int32>", "exactly seq_len token ids"), C("boundaries", "list<int32>", "start offset of every document piece, first is 0"),
        C("doc_ids", "list<string>", "document of every piece"), C("sources", "list<string>", "source of every piece"),
        C("n_tokens", "int32", "tokens that are not padding"), C("tokenizer_id", "string", "sha256 (first 16) of tokenizer.json"),
    ),
    "interval",
    (between("n_tokens", 1), one_of("split", "train", "held_out"), at_least(1, "warning")),
)  # fmt: skip
FUNNEL = ("landed", "rejected", "duplicate", "contaminated", "held_out", "kept")  # every landed document is one of the others
BREAKDOWNS = (
    "rejected_by_first_rule", "rejected_by_rule", "duplicate_by_scope", "contaminated_by_benchmark", "kept_by_language", "landed_by_licence", "kept_by_licence",
    "landed_by_bytes", "kept_by_bytes", "kept_by_tokens",
)  # fmt: skip
STATISTICS = Table(
    "statistics", "how many documents of one source met one end, or share one property", ("source", "what", "bucket", "interval"),
    (
        INTERVAL, C("source", "string", "landing folder"), C("what", "string", "quarantined, one of the funnel, or one of its breakdowns"),
        C("bucket", "string", "rule, scope, benchmark, language, licence, or least length (it reaches to twice that); empty: all, or unknown"),
        C("documents", "int64", "documents; quarantined: records that could not be read"),
        C("bytes", "int64", "UTF-8 bytes of these documents as they landed; unknown for what could not be read", nullable=True),
        C("text_bytes", "int64", "UTF-8 bytes of their text as it was packed", nullable=True),
        C("tokens", "int64", "tokens in sequences, ends of documents included, padding not", nullable=True),
        C("counted_again", "int64", "the same documents counted in other tables; null: nothing to compare with", nullable=True),
    ),
    "interval",
    (
        Rule("ExpectColumnPairValuesToBeEqual", {"column_A": "documents", "column_B": "counted_again", "ignore_row_if": "either_value_is_missing"}),
        one_of("what", "quarantined", *FUNNEL, *BREAKDOWNS), between("documents", 0), between("bytes", 0), between("text_bytes", 0), between("tokens", 0),
        at_least(len(FUNNEL), "warning"),
    ),
)  # fmt: skip
CHECKPOINTS = Table(
    "checkpoints", "a published checkpoint of a training run", ("step", "run_key"),
    (
        RUN_KEY, C("uri", "string", "folder under artifacts/"), C("sha256", "string", "of the checkpoint's manifest"), C("step", "int64", "optimizer steps"),
        C("tokens", "int64", "trained tokens"), C("loss", "float64", "mean training loss of the last steps, nats/token"),
        C("held_out_loss", "float64", "nats/token on held-out sequences", nullable=True), C("config", "string", "JSON TrainConfig"),
        C("final", "bool", "end of the run"), C("mlflow_run_id", "string", "run in MLflow", nullable=True),
    ),
    "run_key",
    (between("loss", 0.0, 100.0), between("step", 1), at_least(1)),
)  # fmt: skip
FORECASTS = Table(
    "forecasts", "a prediction, hashed before launch", ("metric", "run_key"),
    (
        RUN_KEY, C("metric", "string", "loss | accuracy | cost_usd | wall_seconds"), C("predicted", "float64", "point"), C("low", "float64", "95 % interval"),
        C("high", "float64", "95 % interval"), C("naive", "float64", "same as the best proxy", nullable=True), C("target", "string", "JSON TrainConfig"),
        C("law", "string", "form and fitted coefficients, JSON"), C("proxies", "string", "JSON of the proxy runs and what they reached"),
        C("decision", "string", "go | ask | stop"), C("registered_at", "timestamp", "before launch"), C("content_hash", "string", "sha256 over the row set"),
    ),
    "run_key",
    (one_of("decision", "go", "ask", "stop"), one_of("metric", "loss", "accuracy", "cost_usd", "wall_seconds"), at_least(4)),
)  # fmt: skip
SCORES = Table(
    "scores", "a model's score on one task, one category or the average", ("benchmark", "category", "run_key"),
    (
        RUN_KEY, C("model", "string", "checkpoint sha256, first 16"), C("benchmark", "string", "task label, or * for a category mean, or ** for the average"),
        C("category", "string", "category"), C("shots", "int32", "few-shot examples"), C("n", "int64", "items"), C("metric", "string", "how it was scored"),
        C("accuracy", "float64", "share right"), C("stderr", "float64", "standard error of accuracy"), C("chance", "float64", "accuracy of guessing"),
        C("best_constant", "float64", "accuracy of the best fixed answer"), C("score", "float64", "(accuracy - baseline) / (1 - baseline)"),
        C("accuracy_clean", "float64", "on items no training text overlaps", nullable=True), C("n_contaminated", "int64", "items that overlap"), C("mode", "string", "exact (Foundry's rules) | fixed (its known defects corrected)"),
    ),
    "run_key",
    (between("accuracy", 0.0, 1.0), between("stderr", 0.0, 1.0), between("chance", 0.0, 1.0), at_least(3)),
    schema_version=2,
)  # fmt: skip
RESPONSES = Table(
    "responses", "one answer of a model to one item", ("benchmark", "item_id", "run_key"),
    (
        RUN_KEY, C("benchmark", "string", "task label"), C("category", "string", "category"), C("item_id", "string", "item"), C("kind", "string", "task format"),
        C("prompt_hash", "string", "sha256 (first 16) of the prompt tokens"), C("n_prompt_tokens", "int32", "tokens of the context"),
        C("choices", "list<string>", "continuations"), C("sum_logprobs", "list<float64>", "per choice, nats"), C("mean_logprobs", "list<float64>", "per choice and token, nats; what decides (pmi metrics: minus that without context)"),
        C("output", "string", "generated text or chosen continuation"), C("prediction", "int32", "index chosen, -1 if none"), C("gold", "int32", "right index, -1 if none"),
        C("correct", "bool", "right"), C("truncated", "bool", "context was cut on the left"), C("weights_digest", "string", "sha256 of the weights, first 16"),
        C("item", "string", "JSON row: prompt parts"),
        C("confidence", "float64", "language modeling: probability of the least likely token of the model's own answer", nullable=True),
    ),
    "run_key",
    (at_least(1), between("confidence", 0.0, 1.0)),
    schema_version=2,
)  # fmt: skip
VERDICTS = Table(
    "verdicts", "the review of one response", ("benchmark", "item_id", "run_key"),
    (
        RUN_KEY, C("benchmark", "string", "task label"), C("item_id", "string", "item"),
        C("verdict", "string", "proper | lucky | constant_answer | contaminated | format_failure | near_miss | wrong"),
        C("margin", "float64", "mean log-probability of gold minus best other, nats/token", nullable=True), C("evidence", "string", "why, one line"),
        C("second_choice", "int32", "index of the option after the chosen one", nullable=True),
        C("lead", "float64", "mean log-probability of chosen minus second choice, nats/token", nullable=True),
        C("pattern", "string", "rule that needs no understanding and gives this answer too", nullable=True),
        C("pattern_agreement", "float64", "share of the task's answers that follow it", nullable=True),
        C("format", "string", "ok | empty | no_words"), C("contaminated", "bool", "training text overlaps the item"),
        C("key_suspect", "bool", "wrong, with a lead at which this model otherwise agrees with the key; weak: one model"),
        C("failure_group", "int32", "group in failure_groups", nullable=True),
    ),
    "run_key",
    (
        one_of("verdict", "proper", "lucky", "constant_answer", "contaminated", "format_failure", "near_miss", "wrong"), at_least(1),
        one_of("format", "ok", "empty", "no_words"), between("lead", 0.0), between("pattern_agreement", 0.0, 1.0), between("failure_group", 0),
    ),
    schema_version=2,
)  # fmt: skip
FAILURES = Table(
    "failures", "where a model fails: one row per task", ("benchmark", "run_key"),
    (
        RUN_KEY, C("benchmark", "string", "task label"), C("n", "int64", "items"), C("n_failed", "int64", "not right"),
        C("verdicts", "string", "JSON counts by verdict"), C("summary", "string", "one sentence"), C("nearest_sources", "string", "JSON: corpus sources nearest to the failed items"),
    ),
    "run_key",
    (at_least(1),),
)  # fmt: skip
FAILURE_GROUPS = Table(
    "failure_groups", "wrong answers that belong together, and the training text nearest to them", ("failure_group", "run_key"),
    (
        RUN_KEY, C("failure_group", "int32", "0.. within the run, most failures first"), C("benchmark", "string", "task label"),
        C("category", "string", "category"), C("subset", "string", "subset or source of the items, or empty"), C("verdict", "string", "as in verdicts; mixed: several"),
        C("n", "int64", "failed items"), C("n_items", "int64", "items of the task with this subset"), C("words", "list<string>", "what tells its texts apart"),
        C("item_ids", "list<string>", "failed items, nearest to the group's middle first"),
        C("nearest_documents", "string", "JSON list: doc_id, interval, source, uri, licence, cosine"),
        C("sources", "string", "JSON list: source, share of the similarity of the nearest documents"),
        C("n_sampled", "int64", "training documents looked at"), C("n_documents", "int64", "training documents there are"),
    ),
    "run_key",
    (between("failure_group", 0), between("n", 1),
     one_of("verdict", "constant_answer", "format_failure", "near_miss", "wrong", "mixed")),
)  # fmt: skip
REGISTRATIONS = Table(
    "registrations", "a model version, its gates and its alias", ("run_key",),
    (
        RUN_KEY, C("model_name", "string", "MLflow registered model"), C("model_version", "string", "MLflow version"), C("aliases", "list<string>", "after registering"),
        C("promoted", "bool", "champion moved to it"), C("champion_before", "string", "version", nullable=True), C("gates", "string", "JSON: gate, observed, limit, passed"),
        C("moved_by", "string", "who or what moved the alias"), C("lineage", "string", "JSON: table versions, code revision, forecast, cost"),
        C("registered_at", "timestamp", "when"),
    ),
    "run_key",
)  # fmt: skip
CHECKS = Table(
    "checks", "every expectation evaluated", (),
    (
        C("checked_at", "timestamp", "when"), RUN_KEY, C("stage", "string", "stage"), C("interval", "string", "data day", nullable=True),
        C("attempt_id", "string", "attempt"), C("table_name", "string", "table"), C("table_version", "int64", "version published, -1 if refused", nullable=True),
        C("rule", "string", "rule"), C("severity", "string", "error | warning"), C("observed", "string", "JSON"), C("passed", "bool", "held"),
        C("failed_rows", "int64", "rows that broke it"), C("where_rejected", "string", "folder of the refused rows", nullable=True),
    ),
    "",
)  # fmt: skip
COSTS = Table(
    "costs", "FOCUS 1.3 charge row per attempt and phase, and per slice of idle time and storage; corrections are new rows", (),
    tuple(C(*column) for column in costs.COLUMNS), "",
    schema_version=2,
)  # fmt: skip

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        DOCUMENTS, QUARANTINE, CLEAN_DOCUMENTS, REJECTIONS, FINGERPRINTS, DUPLICATES, REPEATED_PASSAGES, UNIQUE_DOCUMENTS, CONTAMINATION, CONTAMINATED_ITEMS, BENCHMARK_ITEMS, TRAINING_DOCUMENTS,
        SEQUENCES, STATISTICS, CHECKPOINTS, FORECASTS, SCORES, RESPONSES, VERDICTS, FAILURES, FAILURE_GROUPS, REGISTRATIONS, CHECKS, COSTS,
    )
}  # fmt: skip
