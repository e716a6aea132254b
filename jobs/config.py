"""Recipe: what to do, as frozen typed configs of every stage. Knobs that follow from others are derived, never repeated.

Everything here is identity: it enters the run key. Where things run, paths and prices live in infra/env/*.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from jobs.contract import ADDED, MoelineError, config_hash
from models.config import ModelConfig
from models.loop_config import LoopConfig
from models.mixture import Mixture


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Landing files of one day -> ``documents``. A record above ``max_document_bytes`` is quarantined, never cut."""

    sources: tuple[str, ...] = ()  # empty: every folder found in the landing zone
    text_column: str = "text"
    max_document_bytes: int = 10_000_000


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Rule sets per kind of source, and the SPDX licences that may train.

    ``rules`` maps a source name (or ``*`` for all others) to rule set names of jobs/stages/rules; unknown names are errors.
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("python-code", ("code",)),
        ("*", ("gopher_quality", "gopher_repetition", "fineweb")),
    )
    allowed_licences: tuple[str, ...] = (
        "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU", "MPL-2.0",
        "PSF-2.0", "Python-2.0", "Unlicense", "ZPL-2.1", "Zlib",
    )  # fmt: skip
    allow_unknown_licence: bool = True  # a decision of the recipe, recorded per document
    redact: tuple[str, ...] = ("card", "email", "iban", "ip", "phone", "secret")  # replaced by placeholders (jobs/stages/rules/redact.py); (): nothing


@dataclass(frozen=True, kw_only=True)
class DeduplicateConfig:
    """Exact, then MinHash LSH (Broder; FineWeb's 5-word shingles, 14 bands x 8 rows) with every pair verified.

    ``scope``: which documents are compared. ``all``: every document of the day with every other and with what all other days kept.
    ``source``: the same, but only documents of one source with each other. ``day``: only within the day, so that no day depends on another.
    More is not better: over the 96 Common Crawl dumps of FineWeb (arXiv 2406.17557, section 3.4) global deduplication removed up to 90 % of a
    dump, what it kept of the dump examined was worse than what it removed, and models were hardly better than without any deduplication.
    FineWeb therefore deduplicates every dump for itself.

    ``measure``: what a candidate pair must reach. ``jaccard``: shared shingles over all shingles of both, at least ``min_jaccard``.
    ``containment``: shared shingles over those of the smaller set, at least ``min_containment``: drops a copy with much added or cut, too.
    Candidates are found by Jaccard similarity either way (at .5 about one pair in twenty is), so short excerpts of long texts stay.

    ``repeats``: ``line`` or ``paragraph`` also removes from a document what ``repeats_max_documents`` documents of the scope hold already (C4's
    rule, definitions in jobs/repeats.py; empty: nothing). Passages under ``repeats_min_words`` words stay; a document with fewer than
    ``repeats_min_words_left`` words left is dropped.
    """

    shingle_words: int = 5
    bands: int = 14
    rows: int = 8
    min_jaccard: float = 0.7
    seed: int = 1
    scope: str = field(default="all", metadata=ADDED)
    measure: str = field(default="jaccard", metadata=ADDED)
    min_containment: float = field(default=0.8, metadata=ADDED)
    repeats: str = field(default="", metadata=ADDED)
    repeats_max_documents: int = field(default=1, metadata=ADDED)
    repeats_min_words: int = field(default=5, metadata=ADDED)
    repeats_min_words_left: int = field(default=50, metadata=ADDED)

    @property
    def min_similarity(self) -> float:
        """What a pair must reach by ``measure``."""
        return self.min_containment if self.measure == "containment" else self.min_jaccard

    def __post_init__(self) -> None:
        if self.measure not in ("jaccard", "containment"):
            raise MoelineError(f"The measure of deduplication must be 'jaccard' or 'containment', not {self.measure!r}.")
        if self.scope not in ("all", "source", "day"):
            raise MoelineError(f"The scope of deduplication must be 'all', 'source' or 'day', not {self.scope!r}.")
        if self.repeats not in ("", "line", "paragraph"):
            raise MoelineError(f"What deduplication removes from documents must be 'line', 'paragraph' or '' for nothing, not {self.repeats!r}.")
        least = {"repeats_max_documents": 1, "repeats_min_words": self.shingle_words, "repeats_min_words_left": 0}
        for name, low in least.items() if self.repeats else ():
            if getattr(self, name) < low:  # a dropped document is told with its similarity to another one, and shorter texts have no shingle
                raise MoelineError(f"{name} of deduplication must be at least {low}, not {getattr(self, name)!r}.")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which benchmarks a model answers. ``gauntlet_tasks``: task labels of Foundry's YAML when GAUNTLET_DATA is given."""

    name: str = "moeline-v1"
    seed: int = 1234
    items_per_task: int = 400
    own_data_tasks: tuple[str, ...] = ("next_line", "identifier", "docstring")
    symbolic_tasks: tuple[str, ...] = ("brackets", "arithmetic")
    gauntlet_digest: str = ""  # sha256 over the files of GAUNTLET_DATA, filled in by the recipe loader; empty: not in use


DECONTAMINATION_RULES = ("ngram", "share")
DECONTAMINATION_ACTIONS = ("drop_document", "cut_passage")


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """Which words of a benchmark item a training document must not hold, and what happens to one that does (infra/decisions/0014).

    ``rule`` of every benchmark: ``ngram`` (GPT-3, appendix C: one ``ngram_words``-gram of the item), ``share`` (PaLM, section 8: at least
    ``share`` of the item's ``share_words``-grams). ``rules`` names others by benchmark or pattern (``mmlu*``); the first that fits counts.
    What more than ``max_documents`` documents of the day hold is boilerplate (licence headers) and costs no document its place.
    ``action``: ``drop_document``, or ``cut_passage`` with GPT-3's numbers: the match goes with ``cut_characters`` on each side, pieces under
    ``min_piece_characters`` go, and so does a document that falls into more than ``max_pieces``. ``actions`` names others as ``rules`` does; a
    document that has to pay for several benchmarks is dropped when one of them asks for it.
    """

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    ngram_words: int = 13
    max_documents: int = 10
    rule: str = field(default="ngram", metadata=ADDED)
    rules: tuple[tuple[str, str], ...] = field(default=(), metadata=ADDED)
    share_words: int = field(default=8, metadata=ADDED)
    share: float = field(default=0.7, metadata=ADDED)
    action: str = field(default="drop_document", metadata=ADDED)
    cut_characters: int = field(default=200, metadata=ADDED)
    min_piece_characters: int = field(default=200, metadata=ADDED)
    max_pieces: int = field(default=10, metadata=ADDED)
    actions: tuple[tuple[str, str], ...] = field(default=(), metadata=ADDED)

    def __post_init__(self) -> None:
        for rule in (self.rule, *(rule for _, rule in self.rules)):
            if rule not in DECONTAMINATION_RULES:
                raise MoelineError(f"A decontamination rule is {' or '.join(DECONTAMINATION_RULES)}, not {rule!r}.")
        for action in (self.action, *(action for _, action in self.actions)):
            if action not in DECONTAMINATION_ACTIONS:
                raise MoelineError(f"The action of decontamination is {' or '.join(DECONTAMINATION_ACTIONS)}, not {action!r}.")
        least = {"ngram_words": 1, "share_words": 1, "max_documents": 0, "cut_characters": 0, "min_piece_characters": 1, "max_pieces": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise MoelineError(f"{name} of decontamination must be at least {low}, not {getattr(self, name)!r}.")
        if not 0 < self.share <= 1:
            raise MoelineError(f"The share of an item's n-grams that contaminates it lies above 0 and at most at 1, not at {self.share!r}.")

    def rule_of(self, benchmark: str) -> str:
        """The rule that acts for a benchmark."""
        return next((rule for pattern, rule in self.rules if fnmatchcase(benchmark, pattern)), self.rule)

    def action_of(self, benchmark: str) -> str:
        """What a benchmark asks of the documents that contaminate it."""
        return next((action for pattern, action in self.actions if fnmatchcase(benchmark, pattern)), self.action)

    @property
    def may_cut(self) -> bool:
        return "cut_passage" in (self.action, *(action for _, action in self.actions))


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Byte-level BPE, trained once per ``tokenizer`` name, and fixed-length sequences with document boundaries.

    ``packing``: ``concatenate`` cuts a stream of documents every ``seq_len`` tokens; ``best_fit`` cuts only documents longer than that, and
    pads. ``separate_sources``: a sequence holds documents of one source only, which a mixture needs.
    """

    tokenizer: str = "bpe-4096-v1"
    vocab_size: int = 4096
    tokenizer_bytes: int = 8_000_000  # text the tokenizer is trained on
    seq_len: int = 256
    packing: str = field(default="concatenate", metadata=ADDED)
    separate_sources: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.packing not in ("concatenate", "best_fit"):
            raise MoelineError(f"packing must be 'concatenate' or 'best_fit', not {self.packing!r}.")


@dataclass(frozen=True, kw_only=True)
class SummariseConfig:
    """``rules``: the recipe's own (CleanConfig.rules). A document that broke several is counted once, under the first in their order."""

    rules: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. ``tokens`` is rounded down to whole steps of ``batch_sequences`` sequences. ``mixture``: which sources it reads when."""

    model: ModelConfig
    tokens: int
    batch_sequences: int = 16
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.3  # WSD: linear decay to 10 % over the last part
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 1
    precision: str = "bf16"  # bf16 autocast with fp32 masters, or fp32
    experts_backend: str = "grouped_mm"  # reference | grouped_mm | megablocks
    checkpoint_every_steps: int = 100
    held_out_sequences: int = 256
    workers: int = 1
    mixture: Mixture = field(default=Mixture(), metadata=ADDED)
    schedule: str = field(default="wsd", metadata=ADDED)  # this and what follows as in models/loop_config.py
    micro_batch_sequences: int = field(default=0, metadata=ADDED)
    activation_checkpointing: bool = field(default=False, metadata=ADDED)
    compile: bool = field(default=False, metadata=ADDED)
    balance_bias_rate: float = field(default=0.0, metadata=ADDED)
    spike_sigmas: float = field(default=0.0, metadata=ADDED)
    expert_parallel: int = field(default=1, metadata=ADDED)  # over how many of the workers the experts are dealt out (models/parallel/layout.py)

    def __post_init__(self) -> None:
        try:
            self.loop_config()
        except ValueError as error:  # models know nothing of jobs' errors
            raise MoelineError(f"This training cannot be: {error}") from error

    def loop_config(self) -> LoopConfig:
        """What of this the training loop needs to know."""
        return LoopConfig(**{f.name: getattr(self, f.name) for f in fields(LoopConfig)})

    @property
    def tokens_per_step(self) -> int:
        return self.batch_sequences * self.model.max_seq_len

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """Proxy runs and the budget. Each proxy is a share (width scale, token share) of the target."""

    target: TrainConfig
    proxies: tuple[TrainConfig, ...]
    suite: SuiteConfig
    budget_usd: float
    on_over_budget: str = "stop"  # stop | ask


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    suite: SuiteConfig
    batch_tokens: int = 16_384  # padded token positions per forward pass; never changes a score


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    near_miss_margin: float = 0.1  # nats per token between gold and the chosen answer
    nearest_sources: int = 3


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    model_name: str
    budget_usd: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All stages of one experiment. ``min_new_tokens`` new tokens in the corpus start build_model by the asset.

    ``decontaminate`` leaves out its suite: it is the recipe's.
    """

    name: str
    model: ModelConfig
    tokens: int
    train: TrainConfig
    proxies: tuple[TrainConfig, ...]
    budget_usd: float
    on_over_budget: str = "stop"
    min_new_tokens: int = 1_000_000
    ingest: IngestConfig = field(default_factory=IngestConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    pack: PackConfig
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    decontaminate: DecontaminateConfig = field(default=DecontaminateConfig(), metadata=ADDED)
    minimum_gain_points: float | None = field(default=None, metadata=ADDED)  # over the champion, in points of accuracy; None: only money decides

    def __post_init__(self) -> None:
        if self.pack.vocab_size != self.model.vocab_size or self.pack.seq_len != self.model.max_seq_len:
            raise MoelineError(
                f"Recipe {self.name}: the tokenizer packs {self.pack.vocab_size} ids in sequences of {self.pack.seq_len}, the model takes "
                f"{self.model.vocab_size} and {self.model.max_seq_len}. Derive both from the model config."
            )
        if self.train.mixture and not self.pack.separate_sources:
            raise MoelineError(f"Recipe {self.name}: a mixture needs sequences of one source each. Set separate_sources=True in its PackConfig.")
        if self.decontaminate.suite not in (SuiteConfig(), self.suite):
            raise MoelineError(f"Recipe {self.name}: the suite its data is decontaminated for is the recipe's own. Leave it out of its DecontaminateConfig.")
        if self.on_over_budget not in ("stop", "ask"):
            raise MoelineError(f"Recipe {self.name}: on_over_budget must be 'stop' or 'ask', not {self.on_over_budget!r}.")
        if self.minimum_gain_points is not None and not 0 <= self.minimum_gain_points <= 100:
            raise MoelineError(f"Recipe {self.name}: minimum_gain_points lies between 0 and 100, not at {self.minimum_gain_points!r}.")

    def stage_config(self, stage: str) -> Any:
        """The config one stage gets; raises MoelineError for an unknown stage."""
        derived: dict[str, Any] = {
            "decontaminate": lambda: replace(self.decontaminate, suite=self.suite),
            "summarise": lambda: SummariseConfig(rules=self.clean.rules),
            "forecast": lambda: ForecastConfig(
                target=self.train, proxies=self.proxies, suite=self.suite, budget_usd=self.budget_usd, on_over_budget=self.on_over_budget
            ),
            "evaluate": lambda: EvaluateConfig(suite=self.suite),
            "register": lambda: RegisterConfig(model_name="moeline", budget_usd=self.budget_usd),
        }
        if stage in derived:
            return derived[stage]()
        if stage in {f.name for f in fields(self)} and stage in STAGES:
            return getattr(self, stage)
        raise MoelineError(f"Unknown stage {stage!r}. The stages are {', '.join(STAGES)}.")

    def config_hash(self, stage: str) -> str:
        """16 hex digits that two recipes share exactly when they ask the same of ``stage``, and of all stages before it where it prepares data.

        Rows that were filtered or decontaminated otherwise are another corpus, whatever the stage itself was asked to do with them.
        """
        asked = self.asked(stage)
        return config_hash(list(asked.values()) if stage in PREPARE_STAGES else asked[stage])

    def asked(self, stage: str) -> dict[str, Any]:
        """The configs that ``config_hash`` stands for, by stage: of ``stage``, and of all stages before it where it prepares data."""
        return {s: self.stage_config(s) for s in (PREPARE_STAGES[: PREPARE_STAGES.index(stage) + 1] if stage in PREPARE_STAGES else (stage,))}


PREPARE_STAGES = ("ingest", "clean", "deduplicate", "decontaminate", "pack", "summarise")
BUILD_STAGES = ("forecast", "train", "evaluate", "review", "register")
STAGES = PREPARE_STAGES + BUILD_STAGES
PHASES = {  # stage -> phase of the cost ledger
    **dict.fromkeys(PREPARE_STAGES, "prepare"), "forecast": "proxy", "train": "train", "evaluate": "eval", "review": "eval", "register": "register",
}  # fmt: skip
WRITERS = {  # table -> the stage that writes it (tests/test_architecture.py holds this against the stages' WRITES)
    "documents": "ingest", "quarantine": "ingest", "clean_documents": "clean", "rejections": "clean", "unique_documents": "deduplicate",
    "duplicates": "deduplicate", "repeated_passages": "deduplicate", "fingerprints": "deduplicate", "training_documents": "decontaminate",
    "contamination": "decontaminate", "benchmark_items": "decontaminate", "contaminated_items": "decontaminate", "sequences": "pack",
    "statistics": "summarise", "forecasts": "forecast", "checkpoints": "train", "scores": "evaluate", "responses": "evaluate", "verdicts": "review",
    "failures": "review", "failure_groups": "review", "registrations": "register",
}  # fmt: skip
