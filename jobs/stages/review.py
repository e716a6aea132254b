"""Review: a verdict per response, and per task where the model fails and which parts of the corpus lie nearest to what it fails on.

Change here: what a summary says, how near sources are found. Not here: the verdicts themselves (models/gauntlet/review.py).
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.config import ReviewConfig
from jobs.contract import MoelineError, StageOutput, Tools
from models.gauntlet import review

ENGINE = "arrow"
READS = {"responses": "all", "scores": "all", "training_documents": "all"}
WRITES = ("verdicts", "failures")
REVISION = 1

SAMPLE_DOCUMENTS = 3000  # of the training documents, by hash of their id; enough to tell sources apart, seconds to read
SAMPLE_CHARS = 4000  # of every sampled document
FEATURES = 1 << 18  # hashed words and word pairs
Row = Mapping[str, Any]
_WORD = re.compile(r"[A-Za-z_]\w+")


def run(config: ReviewConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Judge every response and summarise every task. Raises MoelineError when there are no responses or a task has no score."""
    responses = inputs["responses"].to_table().to_pylist()
    if not responses:
        raise MoelineError("Asked to review a model's answers, found no responses. Run stage evaluate first.")
    scores = {row["benchmark"]: row for row in inputs["scores"].to_table().to_pylist() if not row["benchmark"].startswith("*")}
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in responses:
        by_task[row["benchmark"]].append({**row, "item": json.loads(row["item"])})
    if missing := sorted(set(by_task) - set(scores)):
        raise MoelineError(f"Responses to {', '.join(missing)} have no score. Run stage evaluate again.")
    tools.progress(1, 4, "reading a sample of the corpus")
    corpus = _Corpus(inputs["training_documents"])
    verdict_rows, failure_rows, counts = [], [], Counter()
    for done, (label, answered) in enumerate(sorted(by_task.items())):
        rules = review.followed_rules(answered)
        verdicts = [review.judge(r, rules=rules, contaminated=bool(r["item"].get("contaminated")), near=config.near_miss_margin) for r in answered]
        counts.update(v.verdict for v in verdicts)
        verdict_rows += [
            {"benchmark": label, "item_id": r["item_id"], "verdict": v.verdict, "margin": v.margin, "evidence": v.evidence}
            for r, v in zip(answered, verdicts, strict=True)
        ]
        failure_rows.append(_failure(scores[label], answered, verdicts, rules, corpus.nearest(answered, config.nearest_sources)))
        tools.progress(1 + 3 * (done + 1) / len(by_task), 4, label)
    metrics = {
        "n": len(verdict_rows),
        "verdicts": {name: counts[name] for name in review.VERDICTS},
        "summaries": {r["benchmark"]: r["summary"] for r in failure_rows},
    }
    return StageOutput({"verdicts": _table(verdict_rows), "failures": _table(failure_rows)}, metrics)


def _failure(
    score: Row, answered: Sequence[Row], verdicts: Sequence[review.Verdict], rules: Sequence[review.Rule], nearest: list[dict[str, Any]]
) -> dict[str, Any]:
    tally = Counter(v.verdict for v in verdicts)
    return {
        "benchmark": score["benchmark"], "n": len(answered), "n_failed": sum(not r["correct"] for r in answered),
        "verdicts": json.dumps({name: tally[name] for name in review.VERDICTS}), "summary": _sentence(score, answered, tally, rules, nearest),
        "nearest_sources": json.dumps(nearest),
    }  # fmt: skip


def _sentence(score: Row, answered: Sequence[Row], tally: Counter[str], rules: Sequence[review.Rule], nearest: list[dict[str, Any]]) -> str:
    """One plain sentence: how far above the baseline, what the failures are, where they pile up."""
    baseline = max(score["chance"], score["best_constant"])
    errors = (score["accuracy"] - baseline) / score["stderr"] if score["stderr"] > 0 else 0.0
    above = f"{errors:.1f} standard errors above its baseline of {baseline:.1%}"
    standing = above if errors > 2 else f"not clearly above its baseline of {baseline:.1%} ({errors:+.1f} standard errors)"
    parts = [f"Right on {sum(r['correct'] for r in answered)} of {len(answered)} ({score['accuracy']:.1%}), {standing}"]
    failed = sum(not r["correct"] for r in answered)
    if failed:
        kinds = [f"{tally[name]} {name.replace('_', ' ')}" for name in ("near_miss", "constant_answer", "format_failure") if tally[name]]
        parts.append(f"of {failed} failures {', '.join(kinds)}" if kinds else f"none of {failed} failures is a near miss")
    if rules:
        parts.append(f"{rules[0].agreement:.0%} of the answers follow the rule {rules[0].name!r}")
    if weakest := _weakest_group(answered):
        parts.append(weakest)
    elif nearest and failed:
        parts.append(f"the failed items lie nearest to {nearest[0]['source']} {nearest[0]['part']} of the corpus".replace("  ", " "))
    return "; ".join(parts) + "."


def _weakest_group(answered: Sequence[Row]) -> str:
    """The group of items (by source, by subset, by length of the prompt) with clearly lower accuracy than the rest, or ''."""
    middle = sorted(r["n_prompt_tokens"] for r in answered)[len(answered) // 2]
    groups: dict[str, list[bool]] = defaultdict(list)
    for r in answered:
        for name in (r["item"].get("source"), r["item"].get("subset")):
            if name:
                groups[f"items of {name}"].append(r["correct"])
        groups[f"prompts of {'more' if r['n_prompt_tokens'] > middle else 'at most'} {middle} tokens"].append(r["correct"])
    n, right = len(answered), sum(r["correct"] for r in answered)
    found = []
    for name, members in groups.items():
        inside, outside = len(members), n - len(members)
        if inside < 20 or outside < 20:
            continue
        p_in, p_out, p = sum(members) / inside, (right - sum(members)) / outside, right / n
        z = (p_out - p_in) / (p * (1 - p) * (1 / inside + 1 / outside)) ** 0.5 if 0 < p < 1 else 0.0  # two-proportion z-test
        found.append((z, f"weakest on {name} ({p_in:.0%} against {p_out:.0%})"))
    best = max(found, default=(0.0, ""))
    return best[1] if best[0] > 2.5 else ""


class _Corpus:
    """TF-IDF vectors of the parts of the corpus (source and first part of the uri), from a sample of training documents."""

    def __init__(self, documents: Any) -> None:
        import numpy as np
        from scipy import sparse

        self.parts: list[tuple[str, str]] = []
        place: dict[tuple[str, str], int] = {}
        rows, columns, document_frequency = [], [], np.zeros(FEATURES, dtype=np.int64)
        self.n_documents = 0
        for source, uri, text in _sample(documents):
            features = _features(text)
            part = place.setdefault((source, part_of(uri)), len(place))
            rows.append(np.full(len(features), part, dtype=np.int32))
            columns.append(features)
            document_frequency[np.unique(features)] += 1
            self.n_documents += 1
        self.parts = list(place)
        if not self.parts:
            return
        self.idf = np.log((1 + self.n_documents) / (1 + document_frequency)).astype(np.float32)
        entries = np.concatenate(columns)
        counts = sparse.csr_matrix((np.ones(len(entries), dtype=np.float32), (np.concatenate(rows), entries)), shape=(len(place), FEATURES))
        self.vectors = self._weighted(counts)

    def _weighted(self, counts: Any) -> Any:
        """Rows of log-scaled counts times idf, of length 1 (0 where nothing is known)."""
        import numpy as np
        from scipy import sparse

        counts = counts.tocsr(copy=True)
        counts.data = np.log1p(counts.data) * self.idf[counts.indices]
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        return sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ counts

    def nearest(self, answered: Sequence[Row], k: int) -> list[dict[str, Any]]:
        """The ``k`` parts nearest to most failed items: how many, the mean cosine, and accuracy on all items nearest to the part."""
        import numpy as np
        from scipy import sparse

        if not self.parts or all(r["correct"] for r in answered):
            return []
        texts = [_features(f"{r['item'].get('prompt', '')} {' '.join(r['choices'])}") for r in answered]
        indices = np.concatenate(texts) if texts else np.empty(0, dtype=np.int32)
        rows = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
        items = self._weighted(sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), (rows, indices)), shape=(len(texts), FEATURES)))
        cosine = np.asarray((items @ self.vectors.T).todense())
        best, value = cosine.argmax(1), cosine.max(1)
        correct = np.array([r["correct"] for r in answered])
        failed = Counter(best[~correct & (value > 0)].tolist())
        return [
            {
                "source": self.parts[part][0], "part": self.parts[part][1], "failed_items": count,
                "cosine": round(float(value[(best == part) & ~correct].mean()), 4), "accuracy": round(float(correct[best == part].mean()), 4),
            }
            for part, count in sorted(failed.items(), key=lambda one: (-one[1], self.parts[one[0]]))[:k]
        ]  # fmt: skip


def part_of(uri: str) -> str:
    """The first part of a uri after its scheme: the package, repository or folder a document belongs to."""
    path = uri.split("://", 1)[-1] if "://" in uri else uri.split(":", 1)[-1] if re.match(r"^[a-z]+:", uri) else uri
    return next((part for part in path.split("/") if part), "")[:80]


def _sample(documents: Any) -> Iterable[tuple[str, str, str]]:
    """(source, uri, start of the text) of about SAMPLE_DOCUMENTS training documents: those with the smallest ids, which are hashes."""
    import pyarrow.dataset as ds

    train = ds.field("split") == "train"
    n = documents.count_rows(filter=train)
    share = min(1.0, SAMPLE_DOCUMENTS / max(1, n))
    chosen = train if share >= 1.0 else train & (ds.field("doc_id") < f"{int(share * 16**8):08x}")
    for batch in documents.scanner(columns=["source", "uri", "text"], filter=chosen, batch_size=256).to_batches():
        for source, uri, text in zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True):
            yield source, uri, text[:SAMPLE_CHARS]


def _features(text: str) -> Any:
    """Hashed words and word pairs of a text, with repetitions, int32 below FEATURES."""
    import numpy as np

    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    pairs = (words[:-1] * np.uint64(0x9E3779B1) + words[1:]) if len(words) > 1 else words[:0]
    return (np.concatenate((words, pairs ^ (pairs >> np.uint64(17)))) % np.uint64(FEATURES)).astype(np.int32)


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    types = {"margin": pa.float64()}
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]})
