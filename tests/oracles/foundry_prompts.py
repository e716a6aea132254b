"""Prompts, answers and averages against llm-foundry itself, item by item and token by token. For a person to run; the test suite does without.

llm-foundry's data set classes, generation metric and gauntlet callback run as published. What they only import for running at scale (composer's
data loaders and download, the registries) is stood in for by a few lines below, because it needs a GPU stack and is not what is compared.

    uv venv foundry-env && VIRTUAL_ENV=foundry-env uv pip install --no-deps llm-foundry==0.22.0 torchmetrics lightning-utilities
    echo <this project's .venv>/lib/python3.11/site-packages > foundry-env/lib/python3.11/site-packages/project.pth
    PYTHONPATH=. foundry-env/bin/python tests/oracles/foundry_prompts.py ../shared/gauntlet [rows per benchmark, default 30]

The environment is one of its own: nothing of llm-foundry is installed beside the project. It prints what was compared, and ends with an
error that shows the first difference.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.gauntlet import gauntlet, tasks
from models.gauntlet.answers import generation_is_right
from models.gauntlet.averages import Score
from models.gauntlet.prompts import TransformersEncoder, assemble
from models.gauntlet.tasks import Benchmark, Item

_PARTS = ("callbacks", "eval", "eval.datasets", "eval.metrics")


def foundry(*, composer_stands_in: bool = True) -> types.SimpleNamespace:
    """llm-foundry's own classes, loaded from its files without the package's start-up (which imports its models and trainers)."""
    found = importlib.util.find_spec("llmfoundry")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("llm-foundry is not installed here. See the top of this file.")
    package = types.ModuleType("llmfoundry")
    package.__path__ = list(found.submodule_search_locations)

    @contextlib.contextmanager
    def nothing_to_wait_for(_: str) -> Iterator[None]:
        yield

    dist = types.SimpleNamespace(local_rank_zero_download_and_wait=nothing_to_wait_for, get_local_rank=lambda: 0, all_gather_object=lambda one: [one])
    composer: dict[str, dict[str, Any]] = {
        "composer": {},
        "composer.core": {"DataSpec": object, "Callback": object, "State": object},
        "composer.core.data_spec": {"_default_split_batch": None, "_split_list": None},
        "composer.loggers": {"Logger": object},
        "composer.utils": {"MissingConditionalImportError": ImportError, "dist": dist, "get_file": lambda uri, to, overwrite: shutil.copyfile(uri, to)},
    }
    stand_ins: dict[str, dict[str, Any]] = {
        **(composer if composer_stands_in else {}),
        "llmfoundry.registry": {},
        "llmfoundry.utils": {},
        "llmfoundry.utils.registry_utils": {"construct_from_registry": None},
        **{f"llmfoundry.{part}": {"__path__": [f"{package.__path__[0]}/{part.replace('.', '/')}"]} for part in _PARTS},
    }
    sys.modules["llmfoundry"] = package
    for name, content in stand_ins.items():
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update(content)
    package.registry = sys.modules["llmfoundry.registry"]  # type: ignore[attr-defined]
    from llmfoundry.callbacks import eval_gauntlet_callback
    from llmfoundry.eval.datasets import in_context_learning_evaluation as datasets
    from llmfoundry.eval.metrics import nlp

    return types.SimpleNamespace(
        classes={
            "multiple_choice": datasets.InContextLearningMultipleChoiceTaskDataset,
            "language_modeling": datasets.InContextLearningLMTaskDataset,
            "schema": datasets.InContextLearningSchemaTaskDataset,
            "generation_task_with_answers": datasets.InContextLearningGenerationTaskWithAnswersDataset,
        },
        partition=datasets.partition_dataset_by_category,
        metric=nlp.InContextLearningGenerationExactMatchAccuracy,
        gauntlet=eval_gauntlet_callback.EvalGauntlet,
    )


def tokenizers(texts: list[str]) -> dict[str, Any]:
    """Two small real tokenizers trained on ``texts``: byte-level as GPT-2's, and SentencePiece-like with a BOS and an EOS around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = pad, bos, eos, unknown = ["<pad>", "<s>", "</s>", "<unk>"]
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer, byte_level.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    pieces = Tokenizer(models.BPE(unk_token=unknown))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": pad, "bos_token": bos, "eos_token": eos, "unk_token": unknown}
    return {
        "byte-level": PreTrainedTokenizerFast(tokenizer_object=byte_level, **names),
        "pieces, BOS and EOS": PreTrainedTokenizerFast(tokenizer_object=pieces, **names),
    }


def settings(task: tasks.Task) -> dict[str, Any]:
    given = {
        "num_fewshot": task.num_fewshot, "prompt_string": task.prompt_string, "example_delimiter": task.example_delimiter,
        "continuation_delimiter": task.continuation_delimiter, "prelimiter": task.question_prelimiter, "fewshot_random_seed": task.fewshot_seed,
        "strip_dataset": task.strip_dataset,
    }  # fmt: skip
    if task.kind == "generation_task_with_answers":
        given |= {"cot_delimiter": task.cot_delimiter, "early_stopping_criteria": list(task.early_stopping), "do_normalization": task.do_normalization}
    return given


def theirs(theirs_of: types.SimpleNamespace, benchmark: Benchmark, tokenizer: Any, length: int, folder: Path) -> Iterator[tuple[Any, ...]]:
    """Per item, categories sorted: (contexts, continuations, gold or -1, sorted aliases, max_new_tokens), padding removed."""
    task = benchmark.task
    source = folder / "data.jsonl"
    source.write_text("".join(json.dumps(dict(item.row)) + "\n" for item in benchmark.items))
    files = theirs_of.partition(str(source), str(folder / "all.jsonl"), {}, {}) if task.has_categories else {"": str(source)}
    for name in sorted(files):
        data = theirs_of.classes[task.kind](
            dataset_uri=files[name], tokenizer=tokenizer, max_seq_len=length, pad_tok_id=tokenizer.pad_token_id, destination_path=f"{files[name]}_copy",
            **settings(task),
        )  # fmt: skip
        key = data.context_key
        for index in range(len(data)):
            row = data[index]
            if task.kind == "generation_task_with_answers":
                padded = list(row[key])
                start = next(i for i, token in enumerate(padded) if token != tokenizer.pad_token_id)
                yield [padded[start:]], [], -1, sorted(set(row["aliases"])), data.base_batch["generation_kwargs"]["max_new_tokens"]
                continue
            many = task.kind in ("multiple_choice", "schema")
            spans = row["continuation_indices"] if many else [row["continuation_indices"]]
            texts = row[key] if many else [row[key]]
            contexts = [list(text)[: int(span[0])] for text, span in zip(texts, spans, strict=True)]
            continuations = [list(text)[int(span[0]) : int(span[-1]) + 1] for text, span in zip(texts, spans, strict=True)]
            yield contexts, continuations, row["gold"] if many else -1, [], 0


def compare_prompts(them: types.SimpleNamespace, benchmarks: list[Benchmark], all_tokenizers: dict[str, Any]) -> int:
    compared = 0
    for benchmark in benchmarks:
        generation = benchmark.task.kind == "generation_task_with_answers"
        for (name, tokenizer), length in zip(list(all_tokenizers.items()) * 2, (4096, 4096, 700, 700), strict=True):
            cut = 0
            with tempfile.TemporaryDirectory() as folder:
                expected = list(theirs(them, benchmark, tokenizer, length, Path(folder)))
            requests = list(assemble(benchmark, TransformersEncoder(tokenizer), length))
            assert len(requests) == len(expected), (benchmark.task.label, len(requests), len(expected))
            for request, wanted in zip(requests, expected, strict=True):
                contexts, continuations = [list(c) for c in request.contexts], [list(c) for c in request.continuations]
                gold = request.gold if benchmark.task.kind in ("multiple_choice", "schema") else -1
                got = (contexts, continuations, gold, sorted(set(request.answers)) if generation else [], request.max_new_tokens)
                if got != wanted:
                    at = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
                    raise SystemExit(f"{benchmark.task.label}, item {request.item_id}, {name}, {length}: part {at}\nours   {got[at]}\ntheirs {wanted[at]}")
                compared += 1
                cut += request.truncated
            print(f"{benchmark.task.label:32} {benchmark.task.kind:30} {name:20} max_seq_len {length}: {len(requests)} items equal, {cut} cut", flush=True)
    return compared


def compare_answers(them: types.SimpleNamespace, benchmarks: list[Benchmark]) -> int:
    """Foundry's generation metric and ours on outputs made from the answers: whole, cut, wrapped, swapped."""
    rng = random.Random(5)
    compared = 0
    for benchmark in benchmarks:
        task = benchmark.task
        if task.kind != "generation_task_with_answers":
            continue
        answers = [str(item.row["answer"]) for item in benchmark.items]
        rights = 0
        for item in benchmark.items:
            labels = [item.row["answer"], *item.row.get("aliases", [])]
            for _ in range(12):
                text = rng.choice([*labels, *rng.sample(answers, 2)])
                text = rng.choice(
                    [text, text[: max(1, len(text) // 2)], f" {text}, of course", f"${text}", text.upper(), f"the {text}", f"{text}\n\nQuestion: 3"]
                )
                output = rng.choice([text, f"so. {task.cot_delimiter}{text}", f"{text}{task.cot_delimiter}7", ""])
                metric = them.metric()
                batch = {"cot_delimiter": task.cot_delimiter, "do_normalization": task.do_normalization, "stopping_criteria": list(task.early_stopping)}
                metric.update(batch, [output], [labels])
                wanted, got = bool(metric.compute().item()), generation_is_right(task, output, labels)
                assert got == wanted, (task.label, output, labels, got, wanted)
                rights += got
                compared += 1
        print(f"{task.label:32} answers judged alike, {rights} of them right", flush=True)
    return compared


def compare_averages(them: types.SimpleNamespace, yamls: list[Path]) -> int:
    """Foundry's callback and ours on random accuracies, for every weighting and switch."""
    rng = random.Random(6)
    compared = 0
    for file in yamls:
        ours = gauntlet.read_gauntlet(file)
        for weighting in (gauntlet.EQUAL, gauntlet.SAMPLE_SZ, gauntlet.LOG_SAMPLE_SZ):
            for subtract, rescale, named in ((True, True, True), (True, False, True), (False, False, True), (True, True, False)):
                members = [b for category in ours.categories.values() for b in category]
                accuracies, sizes = {b.key: rng.random() for b in members}, {b.key: rng.randint(1, 5000) for b in members}
                described = [
                    {"name": c, "benchmarks": [{"name": b.name, "num_fewshot": b.shots, "random_baseline": b.random_baseline} for b in listed]}
                    for c, listed in ours.categories.items()
                ]
                averages = {name: list(inside) for name, inside in ours.averages.items()} if named else None
                keys = [f"metrics/{key}/InContextLearningLMAccuracy" for key in accuracies]
                callback = them.gauntlet(keys, described, weighting, subtract, rescale, sizes, averages)
                metrics = {key: {"InContextLearningLMAccuracy": _Computed(value)} for key, value in accuracies.items()}
                wanted = callback.eval_after_all(types.SimpleNamespace(eval_metrics=metrics), None)
                asked = replace(
                    ours, weighting=weighting, subtract_random_baseline=subtract, rescale_accuracy=rescale,
                    averages=ours.averages if named else {"default_average": tuple(ours.categories)},
                )  # fmt: skip
                scores = [Score(b.name, "", b.shots, sizes[b.key], "", accuracies[b.key], 0.0, 0.0, 0.0, 0.0, None, 0, "exact") for b in members]
                got = gauntlet.gauntlet_averages(asked, scores)
                assert {f"icl/metrics/eval_gauntlet/{k}" for k in got} == set(wanted), (set(got), set(wanted))
                for name, value in got.items():
                    assert abs(value - wanted[f"icl/metrics/eval_gauntlet/{name}"]) < 1e-12, (file.name, weighting, name)
                compared += len(got)
        print(f"{file.name:32} averages equal for every weighting and switch", flush=True)
    return compared


class _Computed:
    """A metric that has been computed, as the callback reads it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def compute(self) -> _Computed:
        return self

    def item(self) -> float:
        return self.value


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30
    them = foundry()
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    declared = tasks.declared(folder / "yamls/tasks_v0.3.yaml", folder / "local_data")
    here = [task.label for task, file in declared if file.is_file()]
    whole = tasks.load_foundry(folder / "yamls/tasks_v0.3.yaml", folder / "local_data", only=here)
    all_tokenizers = tokenizers([text for b in whole for item in b.items[::20] for _, text in tasks.item_texts(Benchmark(b.task, (item,)))])
    step = {b.task.label: max(1, len(b.items) // rows) for b in whole}
    some = [Benchmark(b.task, tuple(Item(str(n), item.row) for n, item in enumerate(b.items[:: step[b.task.label]][:rows]))) for b in whole]
    # Forms that the published tasks do not use: schema without shots, text before the questions and before the whole prompt, no stripping.
    for benchmark in [b for b in some if b.task.label in ("winograd", "winogrande", "copa", "siqa", "lambada_openai", "svamp")]:
        for shots in (0, 2):
            task = replace(benchmark.task, label=f"{benchmark.task.label}, {shots} shots", num_fewshot=shots, question_prelimiter="Q: ", prompt_string="Do:\n")
            some.append(Benchmark(replace(task, continuation_delimiter=" => "), benchmark.items))
            some.append(Benchmark(replace(task, prompt_string="", strip_dataset=False), benchmark.items))
    prompts, answers = compare_prompts(them, some, all_tokenizers), compare_answers(them, some)
    averages = compare_averages(them, sorted((folder / "yamls").glob("eval_gauntlet*.yaml")))
    print(f"equal: {prompts} prompts of {len(some)} benchmarks, {answers} judgements of generated answers, {averages} averages")


if __name__ == "__main__":
    main()
