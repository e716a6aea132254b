"""Benchmarks: what is asked. Reads MosaicML Foundry's task YAML and JSONL formats as they are (llm-foundry 8c8dd48).

A task is asked and judged in one of two modes, which are never averaged together. ``exact`` is Foundry, number by number. ``fixed``
corrects what is known to be wrong with it:

| correction       | exact                                                      | fixed                                                           |
|------------------|------------------------------------------------------------|-----------------------------------------------------------------|
| baseline         | Mosaic's random_baseline                                   | max(chance, best constant answer), measured on the items        |
| whole answer     | a generation that *starts with* an alias is right          | the answer line must *be* one; numbers are compared by value    |
| empty alias      | an alias that normalises to nothing accepts every output   | it accepts only itself, as it stands                            |
| literal stops    | early_stopping_criteria are joined to a regular expression | they are text                                                   |
| list strings     | strings in lists (choices, aliases) keep their white space | stripped, as all others                                         |
| shot leakage     | shots may be duplicates of the question, with its answer   | they are replaced; the shots of all other items stay as drawn   |
| schema delimiter | none zero-shot; the example delimiter after the prelimiter | the same form with and without shots, example delimiter first   |
| code tests       | test_inputs and test_outputs, compared with ==             | the data set's own check function                               |
| code delimiter   | continuation_delimiter stands after the code               | the code is continued where it ends                             |
| one code sample  | drawn, at temperature .2                                   | the likeliest tokens: a single draw adds noise and no knowledge |

Duplicate options (the same text twice, so that no answer can be right) are named by ``duplicate_options`` in both modes and left in.

Change here: formats, defaults, which files are read. Not here: how a prompt is assembled (prompts.py), how it is scored (scoring.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models.gauntlet.gauntlet import Gauntlet, read_gauntlet, read_yaml
from models.gauntlet.sampling import AS_COMPOSER, SETTINGS, Sampling, from_yaml

_LOG = logging.getLogger(__name__)

Mode = Literal["exact", "fixed"]
EXACT: Mode = "exact"
FIXED: Mode = "fixed"

MULTIPLE_CHOICE = "multiple_choice"
LANGUAGE_MODELING = "language_modeling"
SCHEMA = "schema"
GENERATION = "generation_task_with_answers"
CODE = "code_evaluation"
# How each kind is scored, as written into the `metric` column of `scores`.
METRICS = {
    MULTIPLE_CHOICE: "mean_token_logprob_argmax", LANGUAGE_MODELING: "all_tokens_argmax", SCHEMA: "mean_token_logprob_argmax", GENERATION: "prefix_match",
    CODE: "pass_at_k",
}  # fmt: skip
_FIELDS = {
    MULTIPLE_CHOICE: ("query", "choices", "gold"), LANGUAGE_MODELING: ("context", "continuation"),
    SCHEMA: ("context_options", "continuation", "gold"), GENERATION: ("context", "answer"),
    CODE: ("task_id", "prompt", "entry_point", "canonical_solution", "test", "test_inputs", "test_outputs", "language"),
}  # fmt: skip
_TASK_KEYS = {
    "label", "dataset_uri", "num_fewshot", "icl_task_type", "continuation_delimiter", "example_delimiter", "question_prelimiter", "prompt_string",
    "cot_delimiter", "early_stopping_criteria", "do_normalization", "has_categories", "fewshot_random_seed", "strip_dataset", "metric_names",
    "batch_size", "max_seq_len", "pad_tok_id", *SETTINGS, "hf_loading_vars", "hf_parsing_map",
}  # fmt: skip
_IGNORED_KEYS = {"metric_names", "batch_size", "max_seq_len", "pad_tok_id"}  # they say how Foundry runs, or what is implied by the kind
_REFUSED_KEYS = {"hf_loading_vars", "hf_parsing_map"}  # they would change what is asked, and are not supported here

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
    their context than after this text. ``sampling``: how code is written. ``own_rules``: how a model that draws its tokens by its own rules answers
    a generation task (own_rules.py; None: the likeliest tokens).
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
    mode: Mode = EXACT
    sampling: Sampling = AS_COMPOSER
    own_rules: Sampling | None = None

    def __post_init__(self) -> None:
        if self.mode not in (EXACT, FIXED):
            raise ValueError(f"Task {self.label}: unknown mode {self.mode!r}. Modes: {EXACT}, {FIXED}.")
        if self.kind not in METRICS:
            raise ValueError(f"Task {self.label}: unknown icl_task_type {self.kind!r}. Supported: {', '.join(METRICS)}.")
        if self.num_fewshot < 0:
            raise ValueError(f"Task {self.label}: num_fewshot is {self.num_fewshot}; it must be 0 or more.")

    @property
    def metric(self) -> str:
        if self.unconditional_context:
            return "mean_token_pmi_argmax"
        if self.kind == CODE:
            return f"pass_at_{self.sampling.pass_at_k[0]}"
        return "answer_match" if self.kind == GENERATION and self.mode == FIXED else METRICS[self.kind]


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
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                try:
                    row = json.loads(line, parse_constant=_no_number)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"Task {task.label}: line {number + 1} of {file} is not JSON ({str(error)[:200]}).") from None
                items.append(Item(str(number), check_row(task, row, f"line {number + 1} of {file}")))
    except UnicodeDecodeError as error:
        raise ValueError(f"Task {task.label}: {file} is not UTF-8 text ({error}).") from None
    if not items:
        raise ValueError(f"Task {task.label}: {file} holds no items.")
    return tuple(items)


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def check_row(task: Task, row: Any, where: str) -> dict[str, Any]:
    """``row`` when it has the fields of the task's format, each of its type; ValueError naming what is wrong and ``where`` otherwise."""
    if not isinstance(row, dict):
        raise ValueError(f"Task {task.label}: {where} is {type(row).__name__}, not a JSON object.")
    missing = [name for name in (*_FIELDS[task.kind], *(("category",) if task.has_categories else ())) if name not in row]
    if missing:
        raise ValueError(f"Task {task.label} ({task.kind}): {where} has no {', '.join(missing)}; it has {', '.join(sorted(row))[:200]}.")
    _check_texts(task, row, where)
    options = row.get("choices") if task.kind == MULTIPLE_CHOICE else row.get("context_options") if task.kind == SCHEMA else None
    if options is not None:
        if not options or not all(options):
            raise ValueError(f"Task {task.label}: the options of {where} must be a list of texts that are not empty.")
        if type(row["gold"]) is not int or not 0 <= row["gold"] < len(options):
            raise ValueError(f"Task {task.label}: gold of {where} is {str(row['gold'])[:50]!r}, but there are {len(options)} options.")
    return row


def _check_texts(task: Task, row: Mapping[str, Any], where: str) -> None:
    for name in _FIELDS[task.kind]:
        if name not in ("gold", *_LISTS):
            _check_text(task, row[name], f"{name} of {where}")
    for name in ("category", "chain_of_thought"):
        if name in row:
            _check_text(task, row[name], f"{name} of {where}")
    for name in _LISTS:
        if name in row and (name in _FIELDS[task.kind] or name == "aliases"):
            if not isinstance(row[name], list):
                raise ValueError(f"Task {task.label}: {name} of {where} must be a list of texts, found {type(row[name]).__name__}.")
            for text in row[name]:
                _check_text(task, text, f"{name} of {where}")


_LISTS = ("choices", "context_options", "aliases", "test_inputs", "test_outputs")


def _check_text(task: Task, text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"Task {task.label}: {what} must be a text, found {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"Task {task.label}: {what} holds half a surrogate pair, which is no text.") from None


def duplicate_options(benchmark: Benchmark) -> dict[str, tuple[int, ...]]:
    """Items of which options are the same text (white space aside): id -> indices of the options that another one repeats."""
    name = {MULTIPLE_CHOICE: "choices", SCHEMA: "context_options"}.get(benchmark.task.kind)
    found: dict[str, tuple[int, ...]] = {}
    for item in benchmark.items if name else ():
        texts = [" ".join(text.split()) for text in item.row[name]]
        if twice := tuple(index for index, text in enumerate(texts) if texts.count(text) > 1):
            found[item.item_id] = twice
    return found


def _task(raw: Any, shots: int, file: Path, mode: Mode) -> Task:
    if not isinstance(raw, dict) or not {"label", "icl_task_type"} <= set(raw):
        raise ValueError(f"{file}: every entry of icl_tasks needs label and icl_task_type, found {str(raw)[:200]}.")
    if unknown := set(raw) - _TASK_KEYS:
        raise ValueError(f"{file}: task {raw['label']} has unknown settings {sorted(unknown)}. Known: {', '.join(sorted(_TASK_KEYS - _REFUSED_KEYS))}.")
    if refused := set(raw) & _REFUSED_KEYS:
        raise ValueError(f"{file}: task {raw['label']} sets {sorted(refused)}, which would change what is asked and is not supported.")
    renamed = {"icl_task_type": "kind", "early_stopping_criteria": "early_stopping", "fewshot_random_seed": "fewshot_seed"}
    settings = {renamed.get(k, k): v for k, v in raw.items() if k not in _IGNORED_KEYS | {"dataset_uri", "num_fewshot", *SETTINGS}}
    stops = settings.get("early_stopping")
    settings["early_stopping"] = tuple(stops) if isinstance(stops, list) else stops or ()
    for name, value in settings.items():
        _check_setting(name, value, f"{file}: task {str(raw['label'])[:100]!r}")
    category = Path(str(raw.get("dataset_uri", ""))).parent.name or "uncategorised"
    sampling = from_yaml(raw, f"{file}: task {str(raw['label'])[:100]!r}", is_code=raw["icl_task_type"] == CODE)
    return Task(num_fewshot=shots, category=category, mode=mode, sampling=sampling, **settings)


def _check_setting(name: str, value: Any, where: str) -> None:
    wanted = _TYPES.get(name, str)
    if type(value) is not wanted or (name == "label" and not value):
        raise ValueError(f"{where}: {name} is {str(value)[:100]!r}; it must be {wanted.__name__}.")
    if name == "early_stopping":
        try:
            re.compile("|".join(value))  # Foundry reads the stops as a regular expression
        except (re.error, TypeError) as error:
            raise ValueError(f"{where}: early_stopping_criteria {str(value)[:100]} are not usable: {error}.") from None


_TYPES: dict[str, type] = {"do_normalization": bool, "has_categories": bool, "strip_dataset": bool, "fewshot_seed": int, "early_stopping": tuple}


def declared(
    tasks_yaml: Path, data_dir: Path, gauntlet_yaml: Path | None = None, *, mode: Mode = EXACT, left_out: str | None = None
) -> list[tuple[Task, Path]]:  # fmt: skip
    """Every task a YAML asks for and its data file, whether or not the file exists.

    With a gauntlet only its (label, shots) pairs, in the gauntlet's categories and with its baselines; without, all of them, the
    category being the folder of the data file and the label ``name/k-shot`` where one name has several shot counts.
    Entries with the key ``left_out`` are another's (lm_eval's, see jobs/evaluating/questions.py).
    """
    places = read_gauntlet(gauntlet_yaml).places() if gauntlet_yaml else None
    found: list[tuple[Task, Path]] = []
    entries = read_yaml(tasks_yaml).get("icl_tasks") or []
    for raw in entries if isinstance(entries, list) else [entries]:
        if left_out is not None and isinstance(raw, dict) and left_out in raw:
            continue
        shot_counts = raw.get("num_fewshot", [0]) if isinstance(raw, dict) else [0]
        for shots in shot_counts if isinstance(shot_counts, list) else [shot_counts]:
            if type(shots) is not int:
                raise ValueError(f"{tasks_yaml}: num_fewshot of {str(raw.get('label'))[:100]} is {str(shots)[:50]!r}; it must be whole numbers.")
            task = _task(raw, shots, tasks_yaml, mode)
            if places is not None:
                if (task.label, task.num_fewshot) not in places:
                    continue  # run beside the gauntlet, not part of it
                category, baseline = places[task.label, task.num_fewshot]
                task = replace(task, category=category, random_baseline=baseline)
            elif isinstance(shot_counts, list) and len(shot_counts) > 1:
                task = replace(task, label=f"{task.label}/{shots}-shot")
            found.append((task, _data_file(raw.get("dataset_uri", ""), data_dir, f"{tasks_yaml}: task {task.label}")))
    if not found:
        raise ValueError(f"{tasks_yaml} asks for no task" + (f" of {gauntlet_yaml}." if gauntlet_yaml else "."))
    labels = [(task.label, task.num_fewshot) for task, _ in found]
    if twice := sorted({f"{label} ({shots}-shot)" for label, shots in labels if labels.count((label, shots)) > 1}):
        raise ValueError(f"{tasks_yaml} defines tasks twice: {', '.join(twice)}.")
    if places is not None and (absent := set(places) - set(labels)):
        raise ValueError(f"{gauntlet_yaml} names benchmarks that {tasks_yaml} does not define: {sorted(absent)}.")
    return found


def _data_file(uri: Any, data_dir: Path, where: str) -> Path:
    """The file below ``data_dir`` that a dataset_uri means; ValueError when it points elsewhere."""
    if not isinstance(uri, str) or not uri or "\0" in uri:
        raise ValueError(f"{where}: dataset_uri is {str(uri)[:100]!r}; it must be the path of a JSONL file.")
    file = Path(os.path.normpath(data_dir / uri.split("local_data/", 1)[-1]))
    if not file.is_relative_to(os.path.normpath(data_dir)):
        raise ValueError(f"{where}: dataset_uri {uri[:100]!r} is outside {data_dir}.")
    return file


def load_foundry(
    tasks_yaml: Path, data_dir: Path, gauntlet_yaml: Path | None = None, *, only: Collection[str] | str | None = None, mode: Mode = EXACT,
    left_out: str | None = None,
) -> list[Benchmark]:  # fmt: skip
    """Benchmarks of a Foundry task YAML, rows exactly as in the JSONL files.

    ``only`` names labels, or a selection (``v0.3-local``: the 26 whose files are small). A missing data file is a ValueError
    naming it: a benchmark that quietly goes missing changes every average.
    """
    labels = None if only is None else set(SELECTIONS.get(only, (only,)) if isinstance(only, str) else only)
    asked = declared(tasks_yaml, data_dir, gauntlet_yaml, mode=mode, left_out=left_out)
    wanted = [(task, file) for task, file in asked if labels is None or task.label in labels]
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


def gauntlet_of(folder: str | Path) -> Gauntlet | None:
    """The gauntlet YAML beside the task list of a GAUNTLET_DATA folder; None where there is none."""
    file = _gauntlet_files(Path(folder))[2]
    return read_gauntlet(file) if file else None


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
    if task.kind == CODE:
        return f"{row['prompt']}{row['canonical_solution']}"
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
