"""Benchmarks: what is asked. Reads MosaicML Foundry's task YAML and JSONL formats as they are (llm-foundry 8c8dd48).

Change here: formats, defaults, which files are read. Not here: how a prompt is assembled (prompts.py), how it is scored (scoring.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)

MULTIPLE_CHOICE = "multiple_choice"
LANGUAGE_MODELING = "language_modeling"
SCHEMA = "schema"
GENERATION = "generation_task_with_answers"
# How each kind is scored, as written into the `metric` column of `scores`.
METRICS = {
    MULTIPLE_CHOICE: "mean_token_logprob_argmax", LANGUAGE_MODELING: "all_tokens_argmax", SCHEMA: "mean_token_logprob_argmax", GENERATION: "prefix_match",
}  # fmt: skip
_FIELDS = {
    MULTIPLE_CHOICE: ("query", "choices", "gold"), LANGUAGE_MODELING: ("context", "continuation"),
    SCHEMA: ("context_options", "continuation", "gold"), GENERATION: ("context", "answer"),
}  # fmt: skip
_TASK_KEYS = {
    "label", "dataset_uri", "num_fewshot", "icl_task_type", "continuation_delimiter", "example_delimiter", "question_prelimiter", "prompt_string",
    "cot_delimiter", "early_stopping_criteria", "do_normalization", "has_categories", "fewshot_random_seed", "strip_dataset", "metric_names",
    "batch_size", "max_seq_len", "pad_tok_id", "generation_kwargs", "hf_loading_vars", "hf_parsing_map",
}  # fmt: skip
_IGNORED_KEYS = {"metric_names", "batch_size", "max_seq_len", "pad_tok_id"}  # they say how Foundry runs, or what is implied by the kind
_REFUSED_KEYS = {"generation_kwargs", "hf_loading_vars", "hf_parsing_map"}  # they would change what is asked, and are not supported here

# What ships without Foundry's five largest files (mmlu, hellaswag, squad, coqa, elementary_math_qa). Its mean is never called core_average.
V03_LOCAL = (
    "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge", "triviaqa_sm_sub", "copa", "siqa", "commonsense_qa", "piqa", "openbook_qa",
    "bigbench_strange_stories", "bigbench_strategy_qa", "lambada_openai", "winograd", "winogrande", "bigbench_dyck_languages", "bigbench_operators",
    "simple_arithmetic_withspaces", "simple_arithmetic_nospaces", "gsm8k", "svamp", "agi_eval_lsat_ar", "boolq", "agi_eval_lsat_rc",
    "agi_eval_lsat_lr", "agi_eval_sat_en",
)  # fmt: skip
SELECTIONS: dict[str, tuple[str, ...]] = {"v0.3-local": V03_LOCAL}


@dataclass(frozen=True, kw_only=True)
class Task:
    """How the items of one benchmark are asked and scored. Defaults are Foundry's.

    ``random_baseline`` is what the gauntlet subtracts (Mosaic's number, kept beside the measured best constant).
    ``prefix_space`` and ``strip_dataset`` are False for our own tasks, whose continuations carry their own white space.
    ``unconditional_context``, where it is not empty (never in Foundry's tasks): options are compared by how much more likely they are after
    their context than after this text.
    """

    label: str
    kind: str
    category: str
    num_fewshot: int = 0
    prompt_string: str = ""
    continuation_delimiter: str = " "
    example_delimiter: str = "\n"
    question_prelimiter: str = ""
    cot_delimiter: str = ""
    early_stopping: tuple[str, ...] = ()
    do_normalization: bool = True
    has_categories: bool = False
    random_baseline: float = 0.0
    fewshot_seed: int = 1234
    strip_dataset: bool = True
    prefix_space: bool = True
    unconditional_context: str = ""

    def __post_init__(self) -> None:
        if self.kind not in METRICS:
            raise ValueError(f"Task {self.label}: unknown icl_task_type {self.kind!r}. Supported: {', '.join(METRICS)}.")
        if self.num_fewshot < 0:
            raise ValueError(f"Task {self.label}: num_fewshot is {self.num_fewshot}; it must be 0 or more.")

    @property
    def metric(self) -> str:
        return "mean_token_pmi_argmax" if self.unconditional_context else METRICS[self.kind]


@dataclass(frozen=True)
class Item:
    """One question. ``row`` is the JSON object exactly as in the data file."""

    item_id: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    task: Task
    items: tuple[Item, ...]


def _read_jsonl(task: Task, file: Path) -> tuple[Item, ...]:
    items = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"Task {task.label}: line {number + 1} of {file} is not JSON ({error}).") from None
            items.append(Item(str(number), check_row(task, row, f"line {number + 1} of {file}")))
    if not items:
        raise ValueError(f"Task {task.label}: {file} holds no items.")
    return tuple(items)


def check_row(task: Task, row: Any, where: str) -> dict[str, Any]:
    """``row`` when it has the fields of the task's format; ValueError naming what is missing and ``where`` otherwise."""
    if not isinstance(row, dict):
        raise ValueError(f"Task {task.label}: {where} is {type(row).__name__}, not a JSON object.")
    missing = [name for name in (*_FIELDS[task.kind], *(("category",) if task.has_categories else ())) if name not in row]
    if missing:
        raise ValueError(f"Task {task.label} ({task.kind}): {where} has no {', '.join(missing)}; it has {', '.join(sorted(row))}.")
    options = row.get("choices") if task.kind == MULTIPLE_CHOICE else row.get("context_options") if task.kind == SCHEMA else None
    if options is not None:
        if not isinstance(options, list) or not options or not all(isinstance(o, str) and o for o in options):
            raise ValueError(f"Task {task.label}: the options of {where} must be a list of texts that are not empty.")
        if not isinstance(row["gold"], int) or not 0 <= row["gold"] < len(options):
            raise ValueError(f"Task {task.label}: gold of {where} is {row['gold']!r}, but there are {len(options)} options.")
    return row


def _task(raw: Any, shots: int, file: Path) -> Task:
    if not isinstance(raw, dict) or not {"label", "icl_task_type"} <= set(raw):
        raise ValueError(f"{file}: every entry of icl_tasks needs label and icl_task_type, found {raw!r:.200}.")
    if unknown := set(raw) - _TASK_KEYS:
        raise ValueError(f"{file}: task {raw['label']} has unknown settings {sorted(unknown)}. Known: {', '.join(sorted(_TASK_KEYS - _REFUSED_KEYS))}.")
    if refused := set(raw) & _REFUSED_KEYS:
        raise ValueError(f"{file}: task {raw['label']} sets {sorted(refused)}, which would change what is asked and is not supported.")
    renamed = {"icl_task_type": "kind", "early_stopping_criteria": "early_stopping", "fewshot_random_seed": "fewshot_seed"}
    settings = {renamed.get(k, k): v for k, v in raw.items() if k not in _IGNORED_KEYS | {"dataset_uri", "num_fewshot"}}
    settings["early_stopping"] = tuple(settings.get("early_stopping") or ())
    category = Path(str(raw.get("dataset_uri", ""))).parent.name or "uncategorised"
    return Task(num_fewshot=shots, category=category, **settings)


def _gauntlet_places(gauntlet_yaml: Path) -> dict[tuple[str, int], tuple[str, float]]:
    """(label, shots) -> (category, random baseline) of a gauntlet YAML."""
    gauntlet = _yaml(gauntlet_yaml)
    gauntlet = gauntlet.get("eval_gauntlet", gauntlet)
    return {
        (benchmark["name"], int(benchmark["num_fewshot"])): (category["name"], float(benchmark["random_baseline"]))
        for category in gauntlet["categories"]
        for benchmark in category["benchmarks"]
    }


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"Cannot read {file}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no mapping; expected Foundry's icl_tasks or eval_gauntlet.")
    return content


def declared(tasks_yaml: Path, data_dir: Path, gauntlet_yaml: Path | None = None) -> list[tuple[Task, Path]]:
    """Every task a YAML asks for and its data file, whether or not the file exists.

    With a gauntlet only its (label, shots) pairs, in the gauntlet's categories and with its baselines; without, all of them, the
    category being the folder of the data file and the label ``name/k-shot`` where one name has several shot counts.
    """
    places = _gauntlet_places(gauntlet_yaml) if gauntlet_yaml else None
    found: list[tuple[Task, Path]] = []
    for raw in _yaml(tasks_yaml).get("icl_tasks") or ():
        shot_counts = raw.get("num_fewshot", [0]) if isinstance(raw, dict) else [0]
        for shots in shot_counts if isinstance(shot_counts, list) else [shot_counts]:
            task = _task(raw, int(shots), tasks_yaml)
            if places is not None:
                if (task.label, task.num_fewshot) not in places:
                    continue  # run beside the gauntlet, not part of it
                category, baseline = places[task.label, task.num_fewshot]
                task = replace(task, category=category, random_baseline=baseline)
            elif isinstance(shot_counts, list) and len(shot_counts) > 1:
                task = replace(task, label=f"{task.label}/{shots}-shot")
            uri = str(raw.get("dataset_uri", ""))
            found.append((task, data_dir / uri.split("local_data/", 1)[-1]))
    if not found:
        raise ValueError(f"{tasks_yaml} asks for no task" + (f" of {gauntlet_yaml}." if gauntlet_yaml else "."))
    if places is not None and (absent := set(places) - {(t.label, t.num_fewshot) for t, _ in found}):
        raise ValueError(f"{gauntlet_yaml} names benchmarks that {tasks_yaml} does not define: {sorted(absent)}.")
    return found


def load_foundry(tasks_yaml: Path, data_dir: Path, gauntlet_yaml: Path | None = None, *, only: Collection[str] | str | None = None) -> list[Benchmark]:
    """Benchmarks of a Foundry task YAML, rows exactly as in the JSONL files.

    ``only`` names labels, or a selection (``v0.3-local``: the 26 whose files are small). A missing data file is a ValueError
    naming it: a benchmark that quietly goes missing changes every average.
    """
    labels = None if only is None else set(SELECTIONS.get(only, (only,)) if isinstance(only, str) else only)
    wanted = [(task, file) for task, file in declared(tasks_yaml, data_dir, gauntlet_yaml) if labels is None or task.label in labels]
    if labels is not None and (unknown := labels - {task.label for task, _ in wanted}):
        raise ValueError(f"{tasks_yaml} does not define {', '.join(sorted(unknown))}.")
    if missing := [f"{task.label} ({file})" for task, file in wanted if not file.is_file()]:
        raise ValueError(f"Missing benchmark data: {', '.join(missing)}. Add the files, or name the benchmarks you want with only=.")
    return [Benchmark(task, _read_jsonl(task, file)) for task, file in wanted]


def _gauntlet_files(folder: Path) -> tuple[Path, Path, Path | None]:
    """(tasks YAML, data folder, gauntlet YAML or None) of a GAUNTLET_DATA folder."""
    data = folder / "local_data" if (folder / "local_data").is_dir() else folder
    candidates = [folder / "yamls" / "tasks_v0.3.yaml", *sorted(folder.glob("tasks*.yaml")), *sorted((folder / "yamls").glob("tasks*.yaml"))]
    tasks_yaml = next((file for file in candidates if file.is_file()), None)
    if tasks_yaml is None:
        raise ValueError(f"GAUNTLET_DATA={folder}: found neither yamls/tasks_v0.3.yaml nor tasks*.yaml. Point it at a folder in Foundry's layout.")
    gauntlet_yaml = tasks_yaml.with_name(tasks_yaml.name.replace("tasks", "eval_gauntlet", 1))
    return tasks_yaml, data, gauntlet_yaml if gauntlet_yaml.is_file() else None


def missing_data(folder: str | Path) -> list[str]:
    """Labels that the folder's YAML asks for and whose data files are not there, in YAML order."""
    return [task.label for task, file in declared(*_gauntlet_files(Path(folder))) if not file.is_file()]


def gauntlet_data(folder: str | Path) -> list[Benchmark]:
    """The benchmarks of a GAUNTLET_DATA folder (``yamls/tasks_v0.3.yaml`` or ``tasks*.yaml``, and ``local_data/``).

    Benchmarks without a data file are logged as a warning and named by ``missing_data``; ValueError when no file is there at all.
    """
    tasks_yaml, data, gauntlet_yaml = _gauntlet_files(Path(folder))
    tasks = declared(tasks_yaml, data, gauntlet_yaml)
    if absent := missing_data(folder):
        _LOG.warning("GAUNTLET_DATA=%s: no data for %d of %d benchmarks: %s", folder, len(absent), len(tasks), ", ".join(absent))
    here = [(task, file) for task, file in tasks if file.is_file()]
    if not here:
        raise ValueError(f"GAUNTLET_DATA={folder}: none of the {len(tasks)} data files that {tasks_yaml.name} names is under {data}.")
    return [Benchmark(task, _read_jsonl(task, file)) for task, file in here]


def gold_text(task: Task, row: Mapping[str, Any]) -> str:
    """Context and right answer of a row as running text, without shots or padding."""
    if task.kind == MULTIPLE_CHOICE:
        return f"{row['query']}{_join(row['query'], row['choices'][row['gold']])}"
    if task.kind == SCHEMA:
        option = row["context_options"][row["gold"]]
        return f"{option}{_join(option, row['continuation'])}"
    answer = row["continuation"] if task.kind == LANGUAGE_MODELING else " ".join(t for t in (row.get("chain_of_thought", ""), row["answer"]) if t)
    return f"{row['context']}{_join(row['context'], answer)}"


def _join(left: str, right: str) -> str:
    return right if not left or not right or left[-1].isspace() or right[0].isspace() else f" {right}"


def item_texts(benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """(item_id, text) of every text of every item, for n-gram decontamination; several rows per item.

    First context with the right answer as one running text (an n-gram may span both), then each other string alone.
    """
    task = benchmark.task
    for item in benchmark.items:
        yield item.item_id, gold_text(task, item.row)
        gold = item.row.get("gold")
        for name in ("choices", "context_options", "aliases"):
            for index, text in enumerate(item.row.get(name) or ()):
                if index != gold or name == "aliases":
                    yield item.item_id, str(text)


def digest(folder: str | Path) -> str:
    """sha256 hex over the relative names and contents of every file below ``folder`` (identity of GAUNTLET_DATA)."""
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"GAUNTLET_DATA={folder} is not a folder.")
    total = hashlib.sha256()
    for file in sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.relative_to(root).as_posix()):
        content = file.read_bytes()
        total.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
