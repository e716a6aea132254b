"""Evaluate: the final checkpoint answers the suite -> scores with baselines and errors, and one response per item.

The suite is own-data items (table ``benchmark_items``) and symbolic tasks made from the seed; with GAUNTLET_DATA also Foundry's tasks,
scored as Foundry scores them. An item is contaminated when a window of its tokens stands in training, or when the rule that decontamination uses
for its benchmark finds it in what is left to train on; the verdicts of all three are kept per response.
Change here: which items are asked, what a row holds. Not here: prompts, scoring, averages (models/gauntlet).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jobs.config import EvaluateConfig, SuiteConfig
from jobs.contract import MoelineError, StageOutput, Tools
from models.gauntlet import averages, own_data, suite, tasks
from models.gauntlet.gauntlet import Gauntlet, gauntlet_rows
from models.gauntlet.scoring import Response
from models.gauntlet.tasks import Benchmark

ENGINE = "arrow"
READS = {"checkpoints": "all", "benchmark_items": "all", "contamination": "all", "contaminated_items": "all", "sequences": "all"}
WRITES = ("scores", "responses")
REVISION = 3  # 3: verdicts of the decontamination rules per response; code is sampled

FOUNDRY = "gauntlet/"  # before the categories and averages of Foundry's tasks
MAX_PROMPT_CHARS = 3000  # what a response keeps of a prompt: its end, which the model read last
MAX_CHOICE_CHARS = 600
MAX_ALIASES = 32
_TASK_METRICS = ("accuracy", "stderr", "chance", "best_constant", "score", "n", "n_contaminated")


def run(config: EvaluateConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Score the checkpoint on the suite. Raises MoelineError when it is damaged, an item is missing, or a number is not finite."""
    started = time.monotonic()
    checkpoint = _final_checkpoint(inputs["checkpoints"].to_table().to_pylist())
    origins = {(r["benchmark"], r["item_id"]): r for r in _rows(inputs["benchmark_items"])}
    try:
        scorer, weights_digest = _scorer(config, checkpoint, inputs["sequences"], tools)
        ours = _own_suite(config.suite, list(origins.values()))
        foundry, missing, plan = _foundry(config.suite, getattr(tools, "gauntlet_data", None))
        kept = {b.task.label: _capped_ids(b, config.suite) for b in foundry}
        foundry, skipped = _answerable(foundry, kept, scorer)
        verdicts, contaminated = _contaminated([*ours, *foundry], scorer.encoder, inputs)
        share = len(ours) / max(1, len(ours) + len(foundry))
        scores, responses = suite.evaluate(
            ours, scorer, contaminated=contaminated, progress=lambda done, total, text: tools.progress(done * share, total, text)
        )
        more, answers = suite.evaluate(
            foundry, scorer, keep=kept, contaminated=contaminated,
            progress=lambda done, total, text: tools.progress(share + (1 - share) * done / max(1, total), 1.0, text),
        )  # fmt: skip
        overall = averages.overall(scores, expected=[b.task.label for b in ours])
        sampled = not all(_whole(b, kept) for b in foundry)
        more, foundry_means = _foundry_means(more, plan, partial=bool(missing or skipped), sampled=sampled)
        means = averages.by_category(scores) + foundry_means
    except ValueError as error:  # models know nothing of jobs' errors
        raise MoelineError(f"Evaluation of {checkpoint['uri']} stopped: {error}") from error
    responses |= answers
    tools.progress(1, 1, f"accuracy {overall.accuracy:.4f}")
    model = {"model": checkpoint["sha256"][:16]}
    score_rows = [{**asdict(s), **model} for s in (*scores, *more, *means, overall)]
    kinds = {b.task.label: b.task for b in (*ours, *foundry)}
    response_rows = [
        _response_row(kinds[label], response, weights_digest, verdicts[label, response.item_id], origins.get((label, response.item_id)))
        for label, answered in responses.items()
        for response in answered
    ]
    metrics = {
        "accuracy": overall.accuracy, "accuracy_stderr": overall.stderr, "score": overall.score, "n_items": len(response_rows),
        "tasks": {s.benchmark: {k: getattr(s, k) for k in _TASK_METRICS} for s in (*scores, *more)},
        "n_contaminated": overall.n_contaminated, "contaminated_by": _by_rule(responses, verdicts),
        "items_with_dropped_documents": _items_with_dropped_documents(inputs["contamination"]),
        "gauntlet_missing": missing, "gauntlet_skipped": skipped, "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    return StageOutput({"scores": _table(score_rows), "responses": _table(response_rows)}, metrics)


def _rows(dataset: Any) -> list[dict[str, Any]]:
    return [] if dataset is None else dataset.to_table().to_pylist()


def _final_checkpoint(rows: list[dict[str, Any]]) -> dict[str, Any]:
    final = [row for row in rows if row["final"]]
    if len(final) != 1:
        raise MoelineError(f"Asked to evaluate one finished training run, found {len(final)} final checkpoints. Run stage train to its end first.")
    return final[0]


def _scorer(config: EvaluateConfig, checkpoint: Mapping[str, Any], sequences: Any, tools: Tools) -> tuple[Any, str]:
    """(scorer of the verified checkpoint, first 16 hex digits of the sha256 of its weights)."""
    import torch

    from models import checkpoint as checkpoints
    from models.gauntlet.prompts import TokenizersEncoder
    from models.gauntlet.scoring import Scorer
    from models.kv_cache import KVCache

    folder = Path(tools.artifact_dir(checkpoint["uri"]))
    found = checkpoints.verify(folder)
    if found != checkpoint["sha256"]:
        raise MoelineError(f"Checkpoint {checkpoint['uri']} is not the one that was recorded: sha256 {found[:16]}, recorded {checkpoint['sha256'][:16]}.")
    model = load_model(folder, json.loads(checkpoint["config"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = TokenizersEncoder.from_bytes(_tokenizer_bytes(sequences, tools))
    scorer = Scorer(model.to(device).eval(), encoder, max_seq_len=model.config.max_seq_len, batch_tokens=config.batch_tokens, cache_type=KVCache)
    manifest = json.loads((folder / checkpoints.MANIFEST).read_bytes())
    return scorer, manifest["files"]["model.safetensors"]["sha256"][:16]


def load_model(folder: Path, train_config: Mapping[str, Any]) -> Any:
    """The float32 Transformer of a (verified) checkpoint folder; only its weights are read, not the optimizer."""
    import torch
    from safetensors.torch import load_file

    from models.config import ModelConfig
    from models.transformer import Transformer

    backend = train_config["experts_backend"]
    if backend == "megablocks" and not torch.cuda.is_available():
        backend = "grouped_mm"  # another kernel for the same mathematics; MegaBlocks has no CPU form
    with torch.device("meta"):
        model = Transformer(ModelConfig(**train_config["model"]), backend)
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    return model.float()


def _tokenizer_bytes(sequences: Any, tools: Tools) -> bytes:
    ids = sequences.to_table(columns=["tokenizer_id"])["tokenizer_id"].unique().to_pylist()
    if len(ids) != 1:
        raise MoelineError(
            f"The training sequences were packed with {len(ids)} tokenizers ({', '.join(map(str, ids[:3]))}); a model has one. Pack all days again."
        )
    file = Path(tools.artifact_dir(f"tokenizers/{ids[0]}")) / "tokenizer.json"
    if not file.is_file():
        raise MoelineError(f"Tokenizer {ids[0]} is not among the artifacts (looked for {file}). Run stage pack again.")
    return file.read_bytes()


def _own_suite(config: SuiteConfig, rows: list[dict[str, Any]]) -> list[Benchmark]:
    return suite.load(rows, own_data_tasks=config.own_data_tasks, symbolic_tasks=config.symbolic_tasks, items_per_task=config.items_per_task, seed=config.seed)


def _foundry(config: SuiteConfig, folder: str | None) -> tuple[list[Benchmark], list[str], Gauntlet | None]:
    """(Foundry's benchmarks, labels without data, their gauntlet if there is one). Their categories get a prefix, so that they never mix with ours."""
    if not folder:
        if config.gauntlet_digest:
            raise MoelineError("The suite includes Foundry's tasks, but GAUNTLET_DATA is not set. Set it to the folder with yamls/ and local_data/.")
        return [], [], None
    if config.gauntlet_digest and (found := tasks.digest(folder)) != config.gauntlet_digest:
        raise MoelineError(f"GAUNTLET_DATA={folder} has changed: digest {found[:16]}, the recipe was loaded with {config.gauntlet_digest[:16]}. Start again.")
    loaded = tasks.gauntlet_data(folder)
    prefixed = [replace(b, task=replace(b.task, category=f"{FOUNDRY}{b.task.category}")) for b in loaded]
    return prefixed, tasks.missing_data(folder), tasks.gauntlet_of(folder)


def _answerable(benchmarks: list[Benchmark], kept: Mapping[str, Sequence[str]], scorer: Any) -> tuple[list[Benchmark], dict[str, str]]:
    """Benchmarks whose answers fit the model's sequences, and why the others do not (they are reported, and no average hides them)."""
    from models.gauntlet.prompts import assemble

    fitting, skipped = [], {}
    for benchmark in benchmarks:
        try:
            zero_shot = replace(benchmark, task=replace(benchmark.task, num_fewshot=0))  # shots are cut to fit, answers are not
            for _ in assemble(zero_shot, scorer.encoder, scorer.max_seq_len, keep=set(kept[benchmark.task.label]).__contains__):
                pass
            fitting.append(benchmark)
        except ValueError as error:
            skipped[benchmark.task.label] = str(error)
    return fitting, skipped


def _capped_ids(benchmark: Benchmark, config: SuiteConfig) -> list[str]:
    """The first ``items_per_task`` item ids in hash order; the shots of an item stay what they are in the whole data set."""
    return sorted((item.item_id for item in benchmark.items), key=lambda i: own_data.stable_order(i, config.seed))[: config.items_per_task]


def _whole(benchmark: Benchmark, kept: Mapping[str, Sequence[str]]) -> bool:
    return len(kept[benchmark.task.label]) == len(benchmark.items)


def _foundry_means(scores: list[averages.Score], plan: Gauntlet | None, *, partial: bool, sampled: bool) -> tuple[list[averages.Score], list[averages.Score]]:
    """(scores, category means and named averages), weighted as the gauntlet YAML says and named as ``moeline evaluate`` names them.

    Without such a YAML all weigh alike, and the mean is ``average``, or ``partial/average`` where tasks or items are left out. A task's category has the
    name its mean has.
    """
    if not scores:
        return [], []
    if plan is None:
        name = f"{FOUNDRY}{'partial/' if partial or sampled else ''}average"
        mean = averages.overall(scores, expected=[s.benchmark for s in scores], name=name)
        return scores, [*averages.by_category(scores), replace(mean, benchmark="*")]
    rows = gauntlet_rows(plan, scores, partial=partial, sampled=sampled)
    names = {row.category.removeprefix("partial/"): f"{FOUNDRY}{row.category}" for row in rows}
    return (
        [replace(s, category=names[s.category.removeprefix(FOUNDRY)]) for s in scores],
        [replace(row, category=f"{FOUNDRY}{row.category}") for row in rows],
    )


def _contaminated(benchmarks: list[Benchmark], encoder: Any, inputs: Mapping[str, Any]) -> tuple[dict[tuple[str, str], dict[str, bool]], dict[str, set[str]]]:
    """((label, item) -> verdict of tokens, ngram and share; label -> contaminated items: by tokens, or by the words the benchmark's own rule looks at)."""
    from models.gauntlet.overlap import left_in_training

    by_tokens, rows = _overlaps(benchmarks, encoder, inputs["sequences"]), _rows(inputs["contaminated_items"])
    acting = {(row["benchmark"], row["rule"]) for row in rows if row["acts"]}
    by_words = left_in_training(rows)
    verdicts: dict[tuple[str, str], dict[str, bool]] = {}
    found: dict[str, set[str]] = {}
    for label, item_id in ((b.task.label, item.item_id) for b in benchmarks for item in b.items):
        words = by_words.get((label, item_id), {})
        verdict = {"tokens": item_id in by_tokens[label], "ngram": words.get("ngram", False), "share": words.get("share", False)}
        decided = verdict["tokens"] or any(verdict[rule] for rule in ("ngram", "share") if (label, rule) in acting)
        verdicts[label, item_id] = verdict | {"contaminated": decided}
        found.setdefault(label, set()).update([item_id] if decided else [])
    return verdicts, found


def _by_rule(responses: Mapping[str, Sequence[Response]], verdicts: Mapping[tuple[str, str], Mapping[str, bool]]) -> dict[str, int]:
    """Answered items that each rule finds in training."""
    answered = [verdicts[label, response.item_id] for label, found in responses.items() for response in found]
    return {rule: sum(verdict[rule] for verdict in answered) for rule in ("tokens", "ngram", "share")}


def _overlaps(benchmarks: list[Benchmark], encoder: Any, sequences: Any) -> dict[str, set[str]]:
    """Items per benchmark of which overlap.WINDOW tokens in a row stand in a training sequence."""
    import pyarrow.dataset as ds

    from models.gauntlet.overlap import overlapping_items

    texts = {(b.task.label, item.item_id): tasks.gold_text(b.task, item.row) for b in benchmarks for item in b.items}
    tokens = {f"{label}\0{item_id}": encoder.encode(text, False) for (label, item_id), text in texts.items()}
    found: dict[str, set[str]] = {b.task.label: set() for b in benchmarks}
    for key in overlapping_items(tokens, _token_arrays(sequences.scanner(columns=["tokens"], filter=ds.field("split") == "train", batch_size=4096))):
        label, _, item_id = key.partition("\0")
        found[label].add(item_id)
    return found


def _token_arrays(scanner: Any) -> Iterator[Any]:
    for batch in scanner.to_batches():
        if batch.num_rows:
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)


def _items_with_dropped_documents(contamination: Any) -> int:
    return 0 if contamination is None else contamination.to_table(columns=["benchmark", "item_id"]).group_by(["benchmark", "item_id"]).aggregate([]).num_rows


def _response_row(task: tasks.Task, response: Response, weights_digest: str, verdict: Mapping[str, bool], origin: Mapping[str, Any] | None) -> dict[str, Any]:
    item = {
        "prompt": response.prompt[-MAX_PROMPT_CHARS:], "prompt_chars": len(response.prompt), "shots": task.num_fewshot, "contaminated": verdict["contaminated"],
        "found_by": [rule for rule in ("tokens", "ngram", "share") if verdict[rule]],
        "doc_id": origin["doc_id"] if origin else None, "source": origin["source"] if origin else None, "subset": response.subset,
        **response.about_samples(MAX_CHOICE_CHARS),
    }  # fmt: skip
    choices = response.choices if response.sum_logprobs else response.choices[:MAX_ALIASES]
    return {
        "benchmark": task.label, "category": task.category, "item_id": response.item_id, "kind": response.kind, "prompt_hash": response.prompt_hash,
        "n_prompt_tokens": response.n_prompt_tokens, "choices": [c[:MAX_CHOICE_CHARS] for c in choices], "sum_logprobs": list(response.sum_logprobs),
        "mean_logprobs": list(response.mean_logprobs), "output": response.output[:MAX_CHOICE_CHARS], "prediction": response.prediction,
        "gold": response.gold, "correct": response.correct, "truncated": response.truncated, "weights_digest": weights_digest,
        "item": json.dumps(item), "confidence": response.confidence,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    types = {
        "sum_logprobs": pa.list_(pa.float64()),
        "mean_logprobs": pa.list_(pa.float64()),
        "choices": pa.list_(pa.string()),
        "accuracy_clean": pa.float64(),
        "confidence": pa.float64(),
    }
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]})
