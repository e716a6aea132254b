"""Samples follow transformers' own distribution, are a function of their draw alone, and pass@k is what counting says it is."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
import torch
from gauntlet_examples import encoder, model, scorer
from scipy import stats
from test_gauntlet_code_evaluation import ROW, permitted

from jobs.evaluating import command, writing
from models import huggingface
from models.gauntlet import averages, code_evaluation, sampling, tasks
from models.gauntlet.code_evaluation import pass_at_k
from models.gauntlet.sampling import Sampling, probabilities, uniform
from models.gauntlet.tasks import Benchmark, Item, Task

WILD = Sampling(samples=3, pass_at_k=(2, 1, 3), temperature=1.5, top_k=30, top_p=0.95)
needs_sandbox = pytest.mark.skipif(bool(permitted()), reason=f"this machine cannot shut code in: {permitted()}")


def contexts(n: int, seed: int = 5) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    beginnings = [(), *(tuple(rng.choices(range(2, 1000), k=k)) for k in (40, 120))]
    return [(*rng.choice(beginnings), *rng.choices(range(2, 1000), k=rng.randint(1, 12))) for _ in range(n)]


def test_probabilities_are_those_of_transformers_own_warpers():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    tokens = torch.tensor([context[-1:] for context in contexts(12)])
    with torch.inference_mode():
        logits = model()(tokens).logits_BTV[:, -1].double()
    logits = logits.clone()  # no inference tensor
    logits[0, :60] = 9.0  # equals at the edge of top_k: transformers keeps them all
    for temperature, top_k, top_p in itertools.product((0.2, 1.0, 1.7), (0, 1, 50, 5000), (1.0, 0.95, 0.3, 1e-9)):
        theirs = warpers.TemperatureLogitsWarper(temperature)(None, logits)
        theirs = warpers.TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
        theirs = warpers.TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
        ours = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        assert torch.equal(ours > 0, theirs.softmax(-1) > 0) and torch.allclose(ours, theirs.softmax(-1), atol=1e-12)


def test_the_settings_are_those_transformers_generate_is_left_with():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=200, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0))
    used = theirs._prepare_generation_config(None, do_sample=True, temperature=0.2, num_beams=1)[0]  # what composer passes
    assert (used.temperature, used.top_k, used.top_p) == (Sampling().temperature, Sampling().top_k, Sampling().top_p)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([[0.0, 3.0, 1.0, -1.0, 2.5, 2.0, -4.0]])
    settings = Sampling(temperature=1.0, top_k=5, top_p=0.97)
    expected = probabilities(logits, settings)[0].numpy()
    n = 20_000
    drawn = sampling.draw(logits.expand(n, -1), [((7,), str(number)) for number in range(n)], 0, settings)
    counts = np.bincount(drawn, minlength=7)
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], n * expected[expected > 0]).pvalue > 1e-3
    numbers = [uniform(((7,), "a"), step, 0) for step in range(5_000)]
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3 and abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.05


def test_every_part_of_a_draw_changes_its_random_number():
    one = uniform(((7, 8), "item\0000"), 3, 0)
    others = [
        uniform(((7,), "item\0000"), 3, 0), uniform(((7, 8), "item\0001"), 3, 0), uniform(((7, 8), "item\0000"), 4, 0), uniform(((7, 8), "item\0000"), 3, 1)
    ]  # fmt: skip
    assert len({one, *others}) == 5 and all(0 <= u < 1 for u in (one, *others))


def test_the_first_and_the_last_random_number_still_draw_a_token_that_may_be_drawn(monkeypatch):
    logits = torch.tensor([[1.0, 5.0, 5.0, 1.0]])
    for number, token in ((0.0, 1), (1 - 2**-53, 2)):
        monkeypatch.setattr(sampling, "uniform", lambda *_, number=number: number)
        assert sampling.draw(logits, [((1,), "")], 0, Sampling(top_k=2)) == [token]


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_size_order_and_neighbours_change_no_sample(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        draws = [(context, f"{place}\0{number}") for place, context in enumerate(contexts(9)) for number in range(3)]
        expected = dict(zip(draws, scorer(batch_tokens=16_384).sample(draws, 6, (), WILD), strict=True))
        assert len(set(expected.values())) > 20  # they are samples
        random.Random(1).shuffle(draws)
        for size in (1, 300, 4096):
            assert scorer(batch_tokens=size).sample(draws, 6, (), WILD) == [expected[draw] for draw in draws]
        assert scorer().sample(draws[:4], 6, (), WILD) == [expected[draw] for draw in draws[:4]]
        assert scorer().sample([draws[0], draws[0]], 6, (), WILD) == [expected[draws[0]]] * 2
    finally:
        torch.set_num_threads(before)


def test_with_and_without_a_cache_the_same_tokens_are_drawn_and_almost_no_temperature_is_greedy():
    asked = contexts(5)
    draws = [(context, str(place)) for place, context in enumerate(asked)]
    assert scorer(shared_prefix=False).sample(draws, 3, (), WILD) == scorer().sample(draws, 3, (), WILD)
    cold = Sampling(temperature=1e-4)
    assert scorer().sample(draws, 3, (), cold) == scorer().generate(asked, 3, ())


def test_sampled_texts_end_at_stops():
    draws = [(context, "0") for context in contexts(8)]
    whole = scorer().sample(draws, 8, (), WILD)
    stop = next(text[4] for text in whole if len(text) > 6)
    for text, stopped in zip(whole, scorer().sample(draws, 8, (stop,), WILD), strict=True):
        assert text.startswith(stopped) and (stop in stopped) == (stop in text)


# -- pass@k -------------------------------------------------------------------------------------------------------------------


def code_task(mode: str = "exact", settings: Sampling = WILD) -> Task:
    return Task(label="code", kind="code_evaluation", category="programming", mode=mode, continuation_delimiter="", sampling=settings)


def benchmark(task: Task, n: int = 4) -> Benchmark:
    return Benchmark(task, tuple(Item(str(i), {**ROW, "task_id": f"own/{i}"}) for i in range(n)))


class Writes:
    """A scorer that writes right code in the first ``right[item]`` samples; greedily always."""

    max_seq_len = 256

    def __init__(self, right: dict[str, int]):
        self.encoder, self.right, self.asked = encoder(), right, []

    def sample(self, draws, max_new_tokens, stops, settings):
        self.asked += draws
        places = [name.split("\0") for _, name in draws]
        return ["    return a + b\n" if int(number) < self.right[item] else "    return a - b\n" for item, number in places]

    def generate(self, contexts, max_new_tokens, stops):
        return ["    return a + b\n" for _ in contexts]


@needs_sandbox
def test_pass_at_k_of_a_benchmark_is_the_mean_over_its_items(monkeypatch):
    task, right = code_task(), {"0": 0, "1": 1, "2": 2, "3": 3}
    judged = []
    monkeypatch.setattr(code_evaluation, "judge", lambda *args, judge=code_evaluation.judge, **more: judged.append(args[2]) or judge(*args, **more))
    writes = Writes(right)
    responses = code_evaluation.score(benchmark(task), writes)
    assert len(writes.asked) == 12 and len(set(writes.asked)) == 12
    assert len(judged) == 6  # three items have both programs, one has only wrong and one only right ones: each is run once an item
    for response in responses:
        n_right = right[response.item_id]
        assert sum(response.passes) == n_right and len(response.samples) == 3 and response.output == response.samples[0]
        draws = list(itertools.combinations(range(3), 2))
        assert response.credit == pytest.approx(sum(any(i < n_right for i in draw) for draw in draws) / len(draws))
        assert response.correct is (n_right > 0)
    one = averages.score_benchmark(task, benchmark(task).items, responses)
    values = [0.0, 2 / 3, 1.0, 1.0]
    assert one.metric == "pass_at_2" and one.accuracy == pytest.approx(np.mean(values)) and one.stderr == pytest.approx(np.std(values) / 2)
    rates = code_evaluation.pass_rates(task, responses)["rates"]
    assert rates == {"2": pytest.approx(np.mean(values)), "1": pytest.approx(np.mean([0, 1 / 3, 2 / 3, 1])), "3": pytest.approx(3 / 4)}


def test_pass_at_k_is_composers_product():
    for n, right, k in itertools.product(range(1, 12), range(12), range(1, 12)):
        if right <= n and k <= n:
            theirs = 1.0 if n - right < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - right + 1, n + 1)))
            assert pass_at_k(n, right, k) == pytest.approx(theirs, abs=1e-12)


@needs_sandbox
def test_one_sample_is_drawn_in_mode_exact_and_the_likeliest_text_in_mode_fixed():
    single = Sampling()
    writes = Writes({str(i): 0 for i in range(4)})
    assert not any(r.correct for r in code_evaluation.score(benchmark(code_task("exact", single)), writes)) and len(writes.asked) == 4
    assert all(r.correct and r.credit is None and not r.samples for r in code_evaluation.score(benchmark(code_task("fixed", single)), writes))
    greedy = code_task("exact", Sampling(temperature=0))
    assert all(r.correct for r in code_evaluation.score(benchmark(greedy), writes)) and len(writes.asked) == 4


def yaml_task(folder, **settings):
    file = folder / "local_data" / "programming" / "code.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({**ROW, "task_id": str(i)}) + "\n" for i in range(3)))
    entry = {
        "label": "code", "dataset_uri": "eval/local_data/programming/code.jsonl", "num_fewshot": [0], "icl_task_type": "code_evaluation", **settings
    }  # fmt: skip
    (folder / "yamls").mkdir(exist_ok=True)
    (folder / "yamls" / "tasks_code.yaml").write_text(json.dumps({"icl_tasks": [entry]}))
    return folder / "yamls" / "tasks_code.yaml"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Sampling()),
        ({"pass_at_k": 1}, Sampling()),
        ({"pass_at_k": [1, 10], "generations_per_sample": 20}, Sampling(samples=20, pass_at_k=(1, 10))),
        ({"pass_at_k": 2, "num_generations": 2}, Sampling(samples=2, pass_at_k=(2,))),
        ({"generation_kwargs": {"temperature": 0.8, "top_p": 0.95, "top_k": 0}}, Sampling(temperature=0.8, top_p=0.95, top_k=0)),
        ({"generation_kwargs": {"do_sample": False}}, Sampling(temperature=0.0)),
    ],
)
def test_the_yaml_says_how_many_samples_are_drawn_and_how(tmp_path, settings, expected):
    (loaded,) = tasks.load_foundry(yaml_task(tmp_path, **settings), tmp_path / "local_data")
    assert loaded.task.sampling == expected and loaded.task.metric == f"pass_at_{expected.pass_at_k[0]}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pass_at_k": 2}, r"pass_at_k is \[2\]; it must be different whole numbers from 1 to generations_per_sample \(1\)"),
        ({"pass_at_k": [1, 1]}, "different whole numbers"),
        ({"pass_at_k": [[1]]}, "unhashable|whole numbers"),
        ({"generations_per_sample": 10**9}, "from 1 to 1000"),
        ({"generations_per_sample": True}, "whole number"),
        ({"generations_per_sample": 2, "num_generations": 3}, "two names of one setting"),
        ({"generation_kwargs": {"num_beams": 4}}, r"unknown settings \['num_beams'\]"),
        ({"generation_kwargs": [1]}, "generation_kwargs has"),
        ({"generation_kwargs": {"temperature": -1}}, "temperature is '?-1"),
        ({"generation_kwargs": {"temperature": "hot"}}, "temperature is"),
        ({"generation_kwargs": {"top_p": 0}}, "top_p above 0"),
        ({"generation_kwargs": {"do_sample": "no"}}, "true or false"),
        ({"generations_per_sample": 2, "generation_kwargs": {"do_sample": False}}, "would all be the same"),
    ],
)
def test_settings_that_cannot_be_sampled_are_refused_by_name(tmp_path, settings, says):
    with pytest.raises(ValueError, match=f"tasks_code.yaml: task 'code': .*({says})"):
        tasks.load_foundry(yaml_task(tmp_path, **settings), tmp_path / "local_data")


@needs_sandbox
def test_the_command_keeps_samples_goes_on_and_never_takes_those_of_other_settings(tmp_path):
    from gauntlet_examples import tokenizer_json

    folder = tmp_path / "own"
    huggingface.export(model(), model().config, folder, tokenizer_json(), eos_id=0, pad_id=1)

    def evaluate(out, **settings):
        yaml_task(tmp_path, **settings)
        asked = command.Options(model=str(folder), suite="code", data=tmp_path, out=tmp_path / out)
        return command.run(asked, cache_folder=tmp_path / "cache")

    several = {"generations_per_sample": 2, "pass_at_k": [1, 2], "generation_kwargs": {"temperature": 1.0}}
    first = evaluate("a", **several)
    assert first["pass_at_k"] == [{"benchmark": "code", "samples": 2, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "rates": {"1": 0.0, "2": 0.0}}]
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "a" / writing.RESPONSES).to_pylist()
    kept = [json.loads(row["item"])["samples"] for row in rows]
    assert len(rows) == 3 and [len(samples) for samples in kept] == [2, 2, 2] and all(s[0]["output"] != s[1]["output"] for s in kept)
    assert "pass" in (tmp_path / "a" / writing.REPORT).read_text()
    assert evaluate("a", **several)["run"]["from_journal"] == 3 and evaluate("b", **several)["run"]["from_cache"] == 3
    journal = tmp_path / "a" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])  # killed after the first item
    answers = (tmp_path / "cache").rglob("*.jsonl")
    for file in list(answers):
        file.unlink()
    again = evaluate("a", **several)
    assert (again["run"]["from_journal"], again["run"]["asked"]) == (1, 2)
    assert pq.read_table(tmp_path / "a" / writing.RESPONSES).to_pylist() == rows
    for other in ({}, {**several, "generation_kwargs": {"temperature": 0.9}}, {**several, "generations_per_sample": 3}):
        assert evaluate("a", **other)["run"]["asked"] == 3
