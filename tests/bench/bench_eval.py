"""make bench-eval: what scoring v0.3-local costs here and elsewhere. Same model, same token ids, scores compared; one process.

Elsewhere is lm_eval's hf backend, or a plain padded loop where accelerate is not installed; what is printed says which.
Positions are counted over all items with a BPE trained on the questions; times over ``ITEMS`` items of every task that is not generation.
The model is a random GPT-2 of 124M parameters. Prints tables and writes build/bench_eval.json; fails only when scores differ.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))
from gauntlet_examples import GAUNTLET, needs_gauntlet

from models.gauntlet import tasks
from models.gauntlet.prefix_tree import positions_of, prefix_tree
from models.gauntlet.prompts import TokenizersEncoder, assemble
from models.gauntlet.scoring import Scorer, score
from models.gauntlet.tasks import GENERATION, LANGUAGE_MODELING, item_texts
from models.huggingface_cache import CachedCausalLM
from models.kv_cache import KVCache

ITEMS = int(os.environ.get("BENCH_ITEMS", "3"))  # per task, the same ones for both
MAX_SEQ_LEN, VOCABULARY = 2048, 50_257
BATCH_TOKENS, BATCH_ROWS = 4096, 4  # ours; lm_eval's, which then takes up to 4 x 2,048 positions
OUT = Path(__file__).resolve().parents[2] / "build" / "bench_eval.json"


class PeakMemory:
    """Most resident memory, in MiB, above what was there at the start."""

    def __enter__(self):
        self._process, self._over = psutil.Process(), threading.Event()
        self._start = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.mib = (self._most - self._start) / 2**20


@pytest.fixture(scope="module")
def benchmarks():
    yamls = GAUNTLET / "yamls"
    return tasks.load_foundry(yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only="v0.3-local")


@pytest.fixture(scope="module")
def encoder(benchmarks):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text for b in benchmarks for _, text in item_texts(b)), trainer)
    return TokenizersEncoder.from_bytes(tokenizer.to_str().encode())


def write(name, value):
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**(json.loads(OUT.read_text()) if OUT.is_file() else {}), name: value}, indent=1) + "\n")


@needs_gauntlet
def test_token_positions_of_every_item(benchmarks, encoder):
    rows = {}
    for benchmark in benchmarks:
        requests = list(assemble(benchmark, encoder, MAX_SEQ_LEN))
        foundry = sum(len(r.contexts) for r in requests) * MAX_SEQ_LEN
        from_position: dict[tuple[int, ...], int] = {}
        whole = 0
        for r in requests:
            for context, continuation in zip(r.contexts, r.continuations or ((),), strict=False):
                text = (*context, *continuation[:-1])
                from_position[text] = min(from_position.get(text, len(text)), len(context) - 1)
                whole += len(context) + len(continuation)
        texts = sorted(from_position)
        rows[benchmark.task.label] = foundry, whole, positions_of(prefix_tree(texts, [from_position[t] for t in texts]))
    total = tuple(map(sum, zip(*rows.values(), strict=True)))
    print(f"\n{'task':<32}{'Foundry, padded':>16}{'no padding':>14}{'prefix tree':>14}{'Foundry/ours':>14}   prompt positions, all items")
    for label, (foundry, whole, ours) in [*rows.items(), ("all", total)]:
        print(f"{label:<32}{foundry:16,}{whole:14,}{ours:14,}{foundry / ours:14.1f}")
    write("positions", {"all": total, **rows})


def lm_eval_scores(model, pairs, encoder):
    """(sum of log-probabilities, all greedy) of each pair by lm_eval's hf backend."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=encoder.tokenizer, **dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>"))
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_ROWS, max_length=MAX_SEQ_LEN, device="cpu")
    requests = [((str(i), ""), list(context), list(continuation)) for i, (context, continuation) in enumerate(pairs)]
    return theirs._loglikelihood_tokens(requests, disable_tqdm=True)


def plain_scores(model, pairs, encoder):
    """The same by a loop over right-padded rows, longest first, one row per distinct text, logits and softmax of every position."""
    texts = sorted({(*context, *continuation[:-1]) for context, continuation in pairs}, key=lambda t: (-len(t), t))
    found = {}
    for at in range(0, len(texts), BATCH_ROWS):
        batch = texts[at : at + BATCH_ROWS]
        rows = torch.tensor([[*text, *[0] * (len(batch[0]) - len(text))] for text in batch])
        with torch.inference_mode():
            logprobs = model(input_ids=rows, use_cache=False).logits.log_softmax(-1)
        for row, text in enumerate(batch):
            for context, continuation in pairs:
                if (*context, *continuation[:-1]) == text:
                    here = logprobs[row, len(context) - 1 : len(text)]
                    chosen = here[range(len(continuation)), list(continuation)].sum().item()
                    found[context, continuation] = chosen, here.argmax(-1).tolist() == list(continuation)
    return [found[pair] for pair in pairs]


def baseline():
    """(name, function): lm_eval's hf backend where it can be imported (it needs accelerate), else a plain loop, which is not lm_eval."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        return f"plain padded loop, NOT lm_eval ({error})", plain_scores
    return "lm_eval hf", lm_eval_scores


@needs_gauntlet
def test_wall_time_beside_lm_evals_hf_backend(benchmarks, encoder):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=MAX_SEQ_LEN)).eval()
    rows = []
    name_of_theirs, scores_of = baseline()
    print(f"\nseconds and peak memory over {ITEMS} items a task: {name_of_theirs}; ours")
    for benchmark in [b for b in benchmarks if b.task.kind != GENERATION]:
        ids = random.Random(1).sample([i.item_id for i in benchmark.items], ITEMS)
        requests = list(assemble(benchmark, encoder, MAX_SEQ_LEN, set(ids).__contains__))
        pairs = [pair for r in requests for pair in zip(r.contexts, r.continuations, strict=True)]
        model.set_attn_implementation("sdpa")
        began = time.perf_counter()
        with PeakMemory() as their_memory:
            theirs = scores_of(model, pairs, encoder)
        their_seconds, their_mib = time.perf_counter() - began, their_memory.mib
        scorer = Scorer(CachedCausalLM(model), encoder, max_seq_len=MAX_SEQ_LEN, batch_tokens=BATCH_TOKENS, cache_type=KVCache)
        began = time.perf_counter()
        with PeakMemory() as memory:  # prompts are assembled already, for both
            scorer.continuation_scores(pairs)
        seconds, at = time.perf_counter() - began, 0
        positions = scorer.positions.padded
        responses = score(benchmark, scorer, keep=set(ids).__contains__)
        for request, response in zip(requests, responses, strict=True):
            answers = theirs[at : at + len(request.contexts)]
            at += len(answers)
            means = [lp / len(c) for (lp, _), c in zip(answers, request.continuations, strict=True)]
            assert response.mean_logprobs == pytest.approx(means, abs=1e-4)
            if request.kind == LANGUAGE_MODELING:
                assert response.correct == answers[0][1]
            elif max(means) - sorted(means)[-2] > 2e-4:
                assert response.prediction == max(range(len(means)), key=means.__getitem__)
        few_shot = benchmark.task.kind == "multiple_choice" and benchmark.task.num_fewshot > 0
        rows.append({
            "task": benchmark.task.label, "few_shot_multiple_choice": few_shot, "seconds": seconds, "their_seconds": their_seconds, "mib": memory.mib,
            "their_mib": their_mib, "positions": positions, "foundry_positions": len(pairs) * MAX_SEQ_LEN,
        })  # fmt: skip
        print(f"{benchmark.task.label:<32}{their_seconds:10.1f}{seconds:8.1f}{their_seconds / seconds:8.1f}x{their_mib:10.0f}{memory.mib:8.0f} MiB", flush=True)
    totals = {}
    for name, chosen in (("all", rows), ("few-shot multiple choice", [r for r in rows if r["few_shot_multiple_choice"]])):
        totals[name] = {k: sum(r[k] for r in chosen) for k in ("seconds", "their_seconds", "positions", "foundry_positions")}
        totals[name] |= {k: max(r[k] for r in chosen) for k in ("mib", "their_mib")}
        t = totals[name]
        print(f"{name:<32}{t['their_seconds']:10.1f}{t['seconds']:8.1f}{t['their_seconds'] / t['seconds']:8.1f}x{t['their_mib']:10.0f}{t['mib']:8.0f} MiB")
        print(f"  token positions with padding: {t['positions']:,}, Foundry's {t['foundry_positions']:,} ({t['foundry_positions'] / t['positions']:.1f} times)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write(
        "wall",
        {
            "compared_with": name_of_theirs,
            "items_per_task": ITEMS,
            "threads": torch.get_num_threads(),
            "totals": totals,
            "tasks": rows,
            "process_peak_mib": peak,
        },
    )
