"""make bench-eval: what scoring v0.3-local costs here and by lm_eval's hf backend. Same model, same token ids, scores compared.

Two models: a random GPT-2 of 124M parameters, and our tiny recipe's mixture of experts, which lm_eval runs as transformers' DbrxForCausalLM.
Two kinds of prompts: Foundry's own (shots drawn anew for every item) and, for few-shot multiple choice, the same first rows as shots for
all items, as lm_eval does. Both backends read the same items in turns within one process, with as many threads; of a few batch sizes
lm_eval gets the one that is fastest here. Peak memory is the most resident memory above that of the loaded model, in a process for each.

Every task gets items worth ``BENCH_TOKENS`` prompt positions. Two overalls: of what was run (every task weighs about the same), and scaled
to all items of the suite (what scoring it whole would take). Writes build/bench_eval.json; fails only when scores differ.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from gauntlet_examples import GAUNTLET, needs_gauntlet

from jobs import recipes
from models import huggingface
from models.gauntlet import prompts, tasks
from models.gauntlet.outside_models import OutsideModel
from models.gauntlet.prefix_tree import positions_of, prefix_tree
from models.gauntlet.prompts import Request, TokenizersEncoder, assemble
from models.gauntlet.scoring import Scorer
from models.gauntlet.tasks import GENERATION, LANGUAGE_MODELING, MULTIPLE_CHOICE, SCHEMA, Benchmark, item_texts
from models.kv_cache import KVCache
from models.transformer import Transformer

TOKENS = int(os.environ.get("BENCH_TOKENS", "1500"))  # prompt positions per task, in items
MAX_SEQ_LEN, BATCH_TOKENS, MOST_ITEMS = 2048, 8192, 400
LM_EVAL_BATCHES = (1, 4, 16)  # 32 rows of 2,048 positions x 50,257 words are 26 GB of logits and log-probabilities
GPT2, MOE = "GPT-2 124M", "our tiny MoE"
VOCABULARY = {GPT2: 50_257, MOE: recipes.tiny().model.vocab_size}
TIMES = {GPT2: 1, MOE: 8}  # so many times BENCH_TOKENS: a position of the small model takes a twentieth
FEW_SHOT = "few-shot multiple choice"
OUT = Path(__file__).resolve().parents[2] / "build" / "bench_eval.json"
Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """Some items of a task. ``share``: how many times as many the task has."""

    label: str
    family: str
    share: float
    requests: tuple[Request, ...]

    @property
    def pairs(self) -> list[Pair]:
        return [pair for r in self.requests for pair in zip(r.contexts, r.continuations, strict=True)]


def family_of(benchmark: Benchmark) -> str:
    task = benchmark.task
    if task.kind != MULTIPLE_CHOICE:
        return {LANGUAGE_MODELING: "language modeling", SCHEMA: "schema"}[task.kind]
    return FEW_SHOT if task.num_fewshot else "zero-shot multiple choice"


@pytest.fixture(scope="module")
def benchmarks() -> list[Benchmark]:
    yamls = GAUNTLET / "yamls"
    return tasks.load_foundry(yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only="v0.3-local")


@pytest.fixture(scope="module")
def encoders(benchmarks) -> dict[str, TokenizersEncoder]:
    """A byte-level BPE of each model's size, trained on the questions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = {}
    for name, size in VOCABULARY.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator((text for b in benchmarks for _, text in item_texts(b)), trainer)
        found[name] = TokenizersEncoder.from_bytes(tokenizer.to_str().encode())
    return found


def write(name: str, value: object) -> None:
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**(json.loads(OUT.read_text()) if OUT.is_file() else {}), name: value}, indent=1) + "\n")


def distinct(pairs: list[Pair]) -> dict[tuple[int, ...], int]:
    """Text to read -> first position whose state is wanted. lm_eval reads the same texts: it groups options of one token, too."""
    found: dict[tuple[int, ...], int] = {}
    for context, continuation in pairs:
        text = (*context, *continuation[:-1])
        found[text] = min(found.get(text, len(text)), len(context) - 1)
    return found


@needs_gauntlet
def test_token_positions_of_every_item(benchmarks, encoders):
    encoder, rows, fixed = encoders[GPT2], {}, {}
    for benchmark in benchmarks:
        rows[benchmark.task.label] = positions(list(assemble(benchmark, encoder, MAX_SEQ_LEN)))
        if family_of_or_none(benchmark) == FEW_SHOT:
            fixed[benchmark.task.label] = positions(list(fixed_shots(benchmark, encoder, range(len(benchmark.items)))))
    for title, counted in (("Foundry's prompts, all items", rows), ("the same shots for all", fixed)):
        counted["all"] = tuple(map(sum, zip(*counted.values(), strict=True)))
        print(f"\n{title:<32}{'Foundry, padded':>16}{'lm_eval, bare':>15}{'prefix tree':>14}{'Foundry/ours':>14}{'lm_eval/ours':>14}")
        for label, (foundry, bare, ours) in counted.items():
            print(f"{label:<32}{foundry:16,}{bare:15,}{ours:14,}{foundry / ours:14.1f}{bare / ours:14.2f}")
    write("positions", {"foundry": rows, "fixed shots": fixed})
    padded, _, ours = rows["all"]
    assert padded >= 20 * ours, "positions are to be at most a twentieth of Foundry's"


def positions(requests: list[Request]) -> tuple[int, int, int]:
    """Positions of Foundry (padded), lm_eval (padding not counted), the prefix tree (padding not counted)."""
    pairs = [pair for r in requests for pair in zip(r.contexts, r.continuations or ((),), strict=False)]
    wanted_from = distinct(pairs)
    texts = sorted(wanted_from)
    return len(pairs) * MAX_SEQ_LEN, sum(map(len, texts)), positions_of(prefix_tree(texts, [wanted_from[text] for text in texts]))


def foundry_work(benchmarks: list[Benchmark], encoder: TokenizersEncoder, tokens: int) -> Iterator[Work]:
    """Items of every task with Foundry's prompts, a random sample."""
    for benchmark in benchmarks:
        if benchmark.task.kind != GENERATION:
            ids = [i.item_id for i in benchmark.items]
            random.Random(1).shuffle(ids)
            some = list(assemble(benchmark, encoder, MAX_SEQ_LEN, set(ids[:MOST_ITEMS]).__contains__))
            random.Random(2).shuffle(some)
            yield enough(benchmark, some, tokens)


def fixed_shots_work(benchmarks: list[Benchmark], encoder: TokenizersEncoder, tokens: int) -> Iterator[Work]:
    """Items of the few-shot multiple choice tasks, all with the first rows as shots."""
    for benchmark in benchmarks:
        if family_of_or_none(benchmark) == FEW_SHOT:
            rows = random.Random(1).sample(range(len(benchmark.items)), len(benchmark.items))
            some = list(fixed_shots(benchmark, encoder, rows[:MOST_ITEMS]))
            yield enough(benchmark, some, 3 * tokens)


def fixed_shots(benchmark: Benchmark, encoder: TokenizersEncoder, rows: Iterable[int]) -> Iterator[Request]:
    """Requests for ``rows``, shots left out: as Foundry writes them, but with the first rows as shots for all."""
    shots = benchmark.task.num_fewshot
    assembler = prompts._Assembler(benchmark.task, benchmark.items, encoder, MAX_SEQ_LEN)
    return (assembler.request(row, range(shots)) for row in rows if row >= shots)


def family_of_or_none(benchmark: Benchmark) -> str | None:
    return None if benchmark.task.kind == GENERATION else family_of(benchmark)


def enough(benchmark: Benchmark, requests: list[Request], tokens: int) -> Work:
    taken: list[Request] = []
    while requests and (not taken or sum(sum(map(len, distinct(list(zip(r.contexts, r.continuations, strict=True))))) for r in taken) < tokens):
        taken.append(requests.pop())
    return Work(benchmark.task.label, family_of(benchmark), len(benchmark.items) / len(taken), tuple(taken))


class PeakMemory:
    """Most resident memory, in MiB, above what was there at the start."""

    def __enter__(self):
        self._process, self._over = psutil.Process(), threading.Event()
        self._start = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.01):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.mib = (self._most - self._start) / 2**20


class Ours:
    """Our scorer; what is timed begins with token ids and ends with scores, as it does for lm_eval."""

    def __init__(self, name: str, encoder: TokenizersEncoder) -> None:
        model = our_model(name)
        cache_type = KVCache if name == MOE else None  # an outside model brings its own
        self.scorer = Scorer(model, encoder, max_seq_len=MAX_SEQ_LEN, batch_tokens=BATCH_TOKENS, cache_type=cache_type)

    def __call__(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        found = self.scorer.continuation_scores(pairs)
        return [(found[pair].sum_logprob, found[pair].greedy == pair[1]) for pair in pairs]


class LmEval:
    """lm_eval's hf backend."""

    def __init__(self, name: str, encoder: TokenizersEncoder) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_object=encoder.tokenizer, **dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>"))
        self.lm = HFLM(pretrained=their_model(name), tokenizer=tokenizer, batch_size=1, max_length=MAX_SEQ_LEN, device="cpu")

    def __call__(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        requests = [((str(i), ""), list(context), list(continuation)) for i, (context, continuation) in enumerate(pairs)]
        return self.lm._loglikelihood_tokens(requests, disable_tqdm=True)

    def choose_batch_size(self, works: list[Work]) -> dict[int, float]:
        """Seconds over some tasks by batch size; keeps the fastest."""
        seconds = {}
        for size in LM_EVAL_BATCHES:
            self.lm.batch_size_per_gpu = size
            seconds[size] = sum(timed(self, work.pairs)[1] for work in works)
        self.lm.batch_size_per_gpu = min(seconds, key=seconds.__getitem__)
        return seconds


def random_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY[GPT2], n_positions=MAX_SEQ_LEN)).eval()


def random_moe() -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(recipes.tiny().model, max_seq_len=MAX_SEQ_LEN)).eval()


def our_model(name: str):
    return OutsideModel(random_gpt2()) if name == GPT2 else random_moe()


def their_model(name: str):
    if name == GPT2:
        model = random_gpt2()
    else:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            own = random_moe()
            huggingface.export(own, own.config, Path(folder), None)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def timed(backend, pairs: list[Pair]) -> tuple[list[tuple[float, bool]], float, float]:
    """(scores, wall seconds, processor seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores = backend(pairs)
    return scores, time.perf_counter() - wall, time.process_time() - cpu


def compare(work: Work, ours: Ours, theirs: LmEval) -> dict[str, object]:
    before = copy.copy(ours.scorer.positions)
    our_scores, seconds, cpu = timed(ours, work.pairs)
    their_scores, their_seconds, their_cpu = timed(theirs, work.pairs)
    now, worst = ours.scorer.positions, 0.0
    for (_, continuation), (logprob, greedy), (their_logprob, their_greedy) in zip(work.pairs, our_scores, their_scores, strict=True):
        worst = max(worst, abs(logprob - their_logprob) / len(continuation))
        assert greedy == their_greedy
    assert worst < 1e-4, f"{work.label}: mean log-probabilities differ by {worst}"
    return {
        "task": work.label, "family": work.family, "share": work.share, "items": len(work.requests), "real": now.real - before.real,
        "padded": now.padded - before.padded, "lm_eval_bare": sum(map(len, distinct(work.pairs))), "foundry": len(work.pairs) * MAX_SEQ_LEN,
        "seconds": seconds, "their_seconds": their_seconds, "cpu": cpu, "their_cpu": their_cpu, "difference": worst,
    }  # fmt: skip


SUMMED = ("items", "real", "padded", "lm_eval_bare", "foundry", "seconds", "their_seconds", "cpu", "their_cpu")


def total(name: str, rows: list[dict], *, scaled: bool = False) -> dict[str, object]:
    sums = {key: sum(row[key] * (row["share"] if scaled else 1) for row in rows) for key in SUMMED}
    return {"task": name, **sums, "difference": max(row["difference"] for row in rows)}


def table(title: str, rows: list[dict]) -> list[dict]:
    """Print tasks, families and overalls; returns the last two."""
    families = [total(family, [r for r in rows if r["family"] == family]) for family in sorted({r["family"] for r in rows})]
    few = [r for r in rows if r["family"] == FEW_SHOT]
    overall = [total("all, as run", rows), total("all, scaled to the whole suite", rows, scaled=True), total("few-shot MC, scaled likewise", few, scaled=True)]
    print(f"\n{title}\n{'':<32}{'items':>8}{'padded':>11}{'Foundry/':>9}{'bare':>11}{'wall s':>18}{'':>7}{'processor s':>18}{'':>7}{'difference':>11}")
    print(f"{'':<32}{'':>8}{'ours':>11}{'ours':>9}{'lm_eval':>11}{'ours':>9}{'lm_eval':>9}{'ratio':>7}{'ours':>9}{'lm_eval':>9}{'ratio':>7}")
    for r in [*rows, *families, *overall]:
        print(
            f"{r['task']:<32}{r['items']:8,.0f}{r['padded']:11,.0f}{r['foundry'] / r['padded']:9.1f}{r['lm_eval_bare']:11,.0f}{r['seconds']:9.1f}"
            f"{r['their_seconds']:9.1f}{r['their_seconds'] / r['seconds']:7.2f}{r['cpu']:9.1f}{r['their_cpu']:9.1f}{r['their_cpu'] / r['cpu']:7.2f}"
            f"{r['difference']:11.1e}"
        )
    return [*families, *overall]


@needs_gauntlet
@pytest.mark.parametrize("prompts_of", ["foundry", "fixed shots"])
@pytest.mark.parametrize("name", [GPT2, MOE])
def test_wall_time_beside_lm_evals_hf_backend(benchmarks, encoders, name, prompts_of):
    ours, theirs = Ours(name, encoders[name]), LmEval(name, encoders[name])
    works = list((foundry_work if prompts_of == "foundry" else fixed_shots_work)(benchmarks, encoders[name], TOKENS * TIMES[name]))
    tried = theirs.choose_batch_size([w for w in works if w.label in ("arc_easy", "agi_eval_lsat_ar")])
    ours(works[0].pairs)
    rows = [compare(work, ours, theirs) for work in works]
    title = f"{name}, {prompts_of} prompts, {torch.get_num_threads()} threads; lm_eval's batch {theirs.lm.batch_size} ({tried})"
    write(f"{name}, {prompts_of}", {"lm_eval_batches": tried, "totals": table(title, rows), "tasks": rows, "threads": torch.get_num_threads()})


@needs_gauntlet
@pytest.mark.parametrize("name", [GPT2, MOE])
def test_peak_memory_each_in_a_process_of_its_own(benchmarks, encoders, name, tmp_path):
    works = [w for w in foundry_work(benchmarks, encoders[name], TOKENS) if w.label in ("agi_eval_lsat_rc", "arc_challenge", "openbook_qa", "boolq")]
    (tmp_path / "pairs.json").write_text(json.dumps([work.pairs for work in works]))
    (tmp_path / "tokenizer.json").write_text(encoders[name].tokenizer.to_str())
    found = {}
    for backend, size in [("ours", BATCH_TOKENS), *(("lm_eval", size) for size in LM_EVAL_BATCHES)]:
        command = [sys.executable, __file__, name, backend, str(size), str(tmp_path)]
        found[f"{backend}, batch {size}"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"\n{name}: most resident memory above the loaded model, MiB: " + "; ".join(f"{k}: {v:.0f}" for k, v in found.items()))
    write(f"{name}, peak memory MiB", found)


def measure_memory(name: str, backend: str, size: str, folder: str) -> None:
    encoder = TokenizersEncoder.from_bytes((Path(folder) / "tokenizer.json").read_bytes())
    works = [[(tuple(c), tuple(a)) for c, a in pairs] for pairs in json.loads((Path(folder) / "pairs.json").read_text())]
    chosen = Ours(name, encoder) if backend == "ours" else LmEval(name, encoder)
    if backend == "lm_eval":
        chosen.lm.batch_size_per_gpu = int(size)
    with PeakMemory() as memory:
        for pairs in works:
            chosen(pairs)
    print(memory.mib)


if __name__ == "__main__":
    measure_memory(*sys.argv[1:])
