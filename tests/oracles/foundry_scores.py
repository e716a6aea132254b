"""Scores against llm-foundry and composer with a model in the loop, item by item. For a person to run; the test suite does without.

Composer's HuggingFaceModel, llm-foundry's data sets (padded to the longest sequence, batched) and its metrics run as published; ours is
``moeline evaluate`` as a person would call it. Compared per item: the log-probability of every option, summed and per token (1e-4 nats),
which answer is right, the generated text up to its stop (``_ended_by_prompt`` says which one rule of Foundry's is not kept); per task:
accuracy (the mean over its categories) and language modeling's calibration error. Of composer only packages it imports at its start and
that nothing here uses are stood in for (images, its cluster).

    uv venv foundry-env && VIRTUAL_ENV=foundry-env uv pip install --no-deps llm-foundry==0.22.0 mosaicml==0.32.1 torchmetrics lightning-utilities
    echo <this project's .venv>/lib/python3.11/site-packages > foundry-env/lib/python3.11/site-packages/project.pth
    PYTHONPATH=. foundry-env/bin/python tests/oracles/foundry_scores.py compare ../shared/gauntlet [rows per benchmark, default 30]
    PYTHONPATH=.:tests/unit foundry-env/bin/python tests/oracles/foundry_scores.py golden tests/golden/foundry_scores.json

``compare`` takes real tasks and two small models (a Llama with a byte-level tokenizer, a GPT-NeoX with SentencePiece-like pieces) taught
half of the answers, so that some are right and some wrong. ``golden`` writes what Foundry says to the items of tests/unit/evaluation_suite.py
from the models of tests/unit/formula_model.py; tests/unit/test_gauntlet_foundry_scores.py compares with it everywhere.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import re
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from foundry_prompts import foundry, settings, tokenizers

from models.gauntlet import calibration, tasks
from models.gauntlet.tasks import Benchmark

TOLERANCE, RELATIVE = 1e-4, 1e-6  # nats, and of a sum over hundreds of tokens, float32
MAX_SEQ_LEN = 1024
_UNUSED = ("torchvision", "cpuinfo", "mcli", "coolname")  # imported when composer starts, never called here


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for ``_UNUSED`` while composer starts. transformers is asked first what it has, and remembers it."""

    def __enter__(self) -> None:
        from transformers.utils import is_torchvision_available

        is_torchvision_available()
        sys.meta_path.append(self)  # after those that find what is installed

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        for name in [name for name, module in sys.modules.items() if getattr(module, "__loader__", None) is self]:
            del sys.modules[name]

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".", maxsplit=1)[0] in _UNUSED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        class Empty(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def teach(folder: Path, benchmarks: Sequence[Benchmark], steps: int = 400) -> None:
    """Train the model in ``folder`` on the answers to every other item of the tasks where guessing hardly ever hits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models.gauntlet.prompts import TransformersEncoder, assemble

    model, encoder = AutoModelForCausalLM.from_pretrained(folder), TransformersEncoder(AutoTokenizer.from_pretrained(folder))
    texts: list[tuple[list[int], int]] = []
    for benchmark in benchmarks:
        for request in list(assemble(benchmark, encoder, MAX_SEQ_LEN))[::2]:
            if request.kind == tasks.LANGUAGE_MODELING:
                answer = request.continuations[0]
            elif request.kind == tasks.GENERATION:
                answer = tuple(encoder.encode(f" {request.answers[0]}\n\n", False))
            else:
                continue
            texts.append(([*request.contexts[0][-60:], *answer], len(answer)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = np.random.default_rng(1)
    for _ in range(steps):
        optimizer.zero_grad()
        chosen = [texts[i] for i in order.integers(0, len(texts), 16)]
        width = max(len(text) for text, _ in chosen)
        tokens = torch.tensor([text + [0] * (width - len(text)) for text, _ in chosen])
        labels = torch.tensor([[-100] * (len(t) - n) + t[-n:] + [-100] * (width - len(t)) for t, n in chosen])
        logits = model(input_ids=tokens).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
        optimizer.step()
    model.save_pretrained(folder, safe_serialization=True)


def theirs(them: types.SimpleNamespace, wrapped: Any, benchmark: Benchmark, length: int, folder: Path, batch: int = 8) -> dict[str, Any]:
    """Foundry's answers: ``items`` in its order (categories sorted, rows as in the file), ``accuracy`` and ``calibration_error``."""
    task = benchmark.task
    source = folder / "theirs.jsonl"
    source.write_text("".join(json.dumps(dict(item.row)) + "\n" for item in benchmark.items))
    files = them.partition(str(source), str(folder / "all.jsonl"), {}, {}) if task.has_categories else {"": str(source)}
    items: list[dict[str, Any]] = []
    accuracies, errors = [], []
    for name in sorted(files):
        data = them.classes[task.kind](
            dataset_uri=files[name], tokenizer=wrapped.tokenizer, max_seq_len=length, pad_tok_id=wrapped.tokenizer.pad_token_id,
            destination_path=f"{files[name]}_copy", **settings(task),
        )  # fmt: skip
        metric, calibrated = them.metrics[task.kind](), them.calibration.get(task.kind, lambda: None)()
        for start in range(0, len(data), batch):
            items += _batch(wrapped, data.collate_fn([data[i] for i in range(start, min(start + batch, len(data)))]), metric, calibrated)
        accuracies.append(float(metric.compute()))
        errors.append(float(calibrated.compute()) if calibrated else None)
    return {"items": items, "accuracy": float(np.mean(accuracies)), "calibration_error": errors[0] if len(errors) == 1 else None}


def _batch(wrapped: Any, batch: dict[str, Any], metric: Any, calibrated: Any) -> Iterator[dict[str, Any]]:
    import torch

    ended_by_prompt = batch.get("mode") == "generate" and _ended_by_prompt(batch)
    with torch.no_grad():
        if ended_by_prompt:  # the texts are cut at the stops afterwards, so that without the criteria the same is judged, or more
            batch["generation_kwargs"]["stopping_criteria"] = None
        outputs = wrapped.eval_forward(batch)
    judged = wrapped.update_metric(batch, outputs, metric)
    if calibrated is not None:
        wrapped.update_metric(batch, outputs, calibrated)
    if batch.get("mode") == "generate":
        for text, right in zip(outputs, judged["result"], strict=True):
            yield {"text": text, "correct": bool(right), "ended_by_prompt": ended_by_prompt}
        return
    losses = []
    for row, span in enumerate(batch["continuation_indices"]):  # as Foundry's metrics read their own outputs
        logits, target = outputs[row].index_select(0, span - 1), wrapped.labels[row].index_select(0, span - 1)
        losses.append((torch.nn.functional.cross_entropy(logits, target).item(), len(span)))
    groups = batch.get("choice_groupings") or [(row, row + 1) for row in range(len(losses))]
    for (start, end), right in zip(groups, judged["result"], strict=True):
        yield {"mean": [-loss for loss, _ in losses[start:end]], "sum": [-loss * n for loss, n in losses[start:end]], "correct": bool(right)}


def _ended_by_prompt(batch: dict[str, Any]) -> bool:
    """Whether Foundry's stopping criteria find a stop in the end of a prompt, and so end the answer at once.

    They look back one token further than the stop is long, into the prompt where nothing is generated yet. An answer then has one token if
    this happens in all rows of the batch, and is whole if not: a score that depends on the batch, which is no rule to keep. Published
    tokenizers split the prompts' ends so that it does not happen; our small ones have pieces that hold a whole "\n\nA:".
    """
    criteria = batch["generation_kwargs"]["stopping_criteria"] or ()
    tails = [(one.stop_sequence, one.tokenizer.batch_decode(batch["input_ids"][:, 1 - one.stop_sequence_id_len :])) for one in criteria]
    return any(stop in text for stop, texts in tails for text in texts)


def composer_model(folder: Path) -> Any:
    """The model of a folder as composer wraps it."""
    from composer.models.huggingface import HuggingFaceModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return HuggingFaceModel(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


def whole_foundry() -> types.SimpleNamespace:
    """llm-foundry's classes over the installed composer."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    with _Unused():
        importlib.import_module("composer.models.huggingface")
    them = foundry(composer_stands_in=False)
    from llmfoundry.eval.metrics import nlp

    them.metrics = {
        tasks.MULTIPLE_CHOICE: nlp.InContextLearningMultipleChoiceAccuracy, tasks.SCHEMA: nlp.InContextLearningMultipleChoiceAccuracy,
        tasks.LANGUAGE_MODELING: nlp.InContextLearningLMAccuracy, tasks.GENERATION: nlp.InContextLearningGenerationExactMatchAccuracy,
    }  # fmt: skip
    them.calibration = {
        tasks.MULTIPLE_CHOICE: nlp.InContextLearningMCExpectedCalibrationError, tasks.SCHEMA: nlp.InContextLearningMCExpectedCalibrationError,
        tasks.LANGUAGE_MODELING: nlp.InContextLearningLMExpectedCalibrationError,
    }  # fmt: skip
    return them


def ours(folder: Path, suite: Path, data: Path, out: Path, only: Sequence[str], length: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(scores.json, label -> rows of responses.parquet in Foundry's order) of ``moeline evaluate``."""
    import pyarrow.parquet as pq

    from jobs.evaluating import command

    result = command.run(command.Options(str(folder), str(suite), data, out, tasks=tuple(only), max_seq_len=length), cache_folder=None)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(out / "responses.parquet").to_pylist():
        rows.setdefault(row["benchmark"], []).append(row | {"subset": json.loads(row["item"])["subset"]})
    return result, {label: sorted(found, key=lambda r: r["subset"]) for label, found in rows.items()}


def differences(benchmark: Benchmark, wanted: dict[str, Any], got: list[dict[str, Any]], accuracy: float) -> tuple[list[str], float]:
    """(what differs in words, the largest difference in nats)."""
    found, largest = [], 0.0
    stops = "|".join(benchmark.task.early_stopping)
    assert len(wanted["items"]) == len(got), (benchmark.task.label, len(wanted["items"]), len(got))
    for number, (w, g) in enumerate(zip(wanted["items"], got, strict=True)):
        where = f"{benchmark.task.label}, item {number}"
        if w["correct"] != g["correct"]:
            found.append(f"{where}: right {g['correct']} here, {w['correct']} there; {w} {g}")
        if "text" in w:
            texts = [re.split(stops, text)[0] if stops else text for text in (w["text"], g["output"])]
            if texts[0].strip()[:600] != texts[1].strip()[:600]:
                found.append(f"{where}: {texts[1]!r} here, {texts[0]!r} there")
            continue
        off = max(abs(a - b) for kind in ("mean", "sum") for a, b in zip(w[kind], g[f"{kind}_logprobs"], strict=True))
        largest = max(largest, off)
        if any(
            not math.isclose(a, b, rel_tol=RELATIVE, abs_tol=TOLERANCE)
            for kind in ("mean", "sum") for a, b in zip(w[kind], g[f"{kind}_logprobs"], strict=True)
        ):  # fmt: skip
            found.append(f"{where}: log-probabilities {g['sum_logprobs']} here, {w['sum']} there")
    if abs(wanted["accuracy"] - accuracy) > 1e-6:
        found.append(f"{benchmark.task.label}: accuracy {accuracy} here, {wanted['accuracy']} there")
    return found, largest


def calibration_difference(benchmark: Benchmark, wanted: dict[str, Any], got: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """(ours, theirs); None where there is none."""
    (summary,) = calibration.tasks(got)
    return summary.ece, wanted["calibration_error"]


def few_rows(source: Path, target: Path, rows: int) -> tuple[Path, list[str]]:
    """A data folder with ``rows`` evenly spaced rows of every benchmark of v0.3 that is here, and their labels."""
    (target / "yamls").mkdir(parents=True)
    (target / "local_data").mkdir()
    for name in ("tasks_v0.3.yaml", "eval_gauntlet_v0.3.yaml"):
        (target / "yamls" / name).write_bytes((source / "yamls" / name).read_bytes())
    labels = []
    for task, file in tasks.declared(source / "yamls/tasks_v0.3.yaml", source / "local_data", source / "yamls/eval_gauntlet_v0.3.yaml"):
        if file.is_file():
            lines = file.read_text().splitlines()
            to = target / "local_data" / file.relative_to(source / "local_data")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text("\n".join(lines[:: max(1, len(lines) // rows)][:rows]) + "\n")
            labels.append(task.label)
    return target, labels


def compare(source: Path, rows: int) -> None:
    """Real tasks, two taught models. Ends with an error that shows the first differences."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
    import formula_model

    them = whole_foundry()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        data, labels = few_rows(source, Path(place) / "data", rows)
        suite = data / "yamls/eval_gauntlet_v0.3.yaml"
        benchmarks = tasks.load_foundry(data / "yamls/tasks_v0.3.yaml", data / "local_data", suite, only=labels)
        texts = [text for b in benchmarks for item in b.items for _, text in tasks.item_texts(Benchmark(b.task, (item,)))]
        for (name, tokenizer), family in zip(tokenizers(texts).items(), ("llama", "gpt_neox"), strict=True):
            folder = formula_model.write(Path(place) / family, family, vocab_size=2048, positions=MAX_SEQ_LEN)
            tokenizer.save_pretrained(folder)
            teach(folder, benchmarks)
            result, answered = ours(folder, suite, data, Path(place) / f"out {family}", labels, MAX_SEQ_LEN)
            accuracy = {s["benchmark"]: s["accuracy"] for s in result["scores"]}
            wrapped = composer_model(folder)
            for benchmark in benchmarks:
                label = benchmark.task.label
                with tempfile.TemporaryDirectory() as scratch:
                    wanted = theirs(them, wrapped, benchmark, MAX_SEQ_LEN, Path(scratch))
                found, largest = differences(benchmark, wanted, answered[label], accuracy[label])
                failures += found
                here, there = calibration_difference(benchmark, wanted, answered[label])
                ece = "" if here is None or there is None else f", calibration error {here:.4f} here, {there:.4f} there"
                if benchmark.task.kind == tasks.LANGUAGE_MODELING and here is not None and there is not None and abs(here - there) > 1e-5:
                    failures.append(f"{label}: calibration error {here} here, {there} there")
                right, cut = sum(i["correct"] for i in wanted["items"]), sum(r["truncated"] for r in answered[label])
                if ended := sum(i.get("ended_by_prompt", False) for i in wanted["items"]):
                    ece += f", {ended} asked without Foundry's stopping criteria, which the prompt fulfils"
                print(
                    f"{family:9}{name:20} {label:32}{benchmark.task.kind:29} {len(wanted['items'])} items, {right} right, {cut} cut; "
                    f"largest difference {largest:.1e} nats{ece}; {len(found)} differences", flush=True,
                )  # fmt: skip
    if failures:
        raise SystemExit("\n".join(failures[:20]) + f"\n{len(failures)} differences")
    print("equal")


def golden(file: Path) -> None:
    """Write what Foundry answers to the items of tests/unit/evaluation_suite.py."""
    import evaluation_suite
    import formula_model

    them, found = whole_foundry(), {}
    with tempfile.TemporaryDirectory() as place:
        data = evaluation_suite.write(Path(place) / "data")
        benchmarks = tasks.load_foundry(data / "yamls/tasks_small.yaml", data / "local_data")
        for family in formula_model.FAMILIES:
            wrapped = composer_model(formula_model.write(Path(place) / family, family))
            found[family] = {}
            for benchmark in benchmarks:
                with tempfile.TemporaryDirectory() as scratch:
                    found[family][benchmark.task.label] = theirs(them, wrapped, benchmark, formula_model.POSITIONS, Path(scratch))
    file.write_text(json.dumps(_rounded(found), indent=1) + "\n")
    print(f"{file}: {sum(len(b['items']) for of in found.values() for b in of.values())} answers")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_rounded(inside) for inside in value]
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    if sys.argv[1:2] == ["golden"]:
        golden(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["compare"]:
        compare(Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 30)
    else:
        raise SystemExit(__doc__)
