"""Review: a verdict per response with its evidence, failures in groups, and the training text that lies nearest to what the model fails on.

Change here: what a summary says, how near documents are found. Not here: the verdicts (models/gauntlet/review.py), what belongs together
(models/gauntlet/failure_groups.py), what to train on next and what it costs (jobs/proposals.py).
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.config import ReviewConfig
from jobs.contract import MoelineError, StageOutput, Tools
from models.gauntlet import failure_groups, review

ENGINE = "arrow"
READS = {"responses": "all", "scores": "all", "training_documents": "all"}
WRITES = ("verdicts", "failures", "failure_groups")
REVISION = 2

SAMPLE_DOCUMENTS = 3000  # of the training documents, by hash of their id; enough to tell sources apart, seconds to read
SAMPLE_CHARS = 4000  # of every sampled document
FEATURES = 1 << 18  # hashed words and word pairs
NEAREST_DOCUMENTS = 20  # of the sample, from which a group's sources are told
SHOWN_DOCUMENTS = 5  # of them a group names
SHOWN_WORDS = 8
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
    verdict_rows, failure_rows, group_rows, counts = [], [], [], Counter()
    for done, (label, answered) in enumerate(sorted(by_task.items())):
        rules = review.followed_rules(answered)
        sure = review.sure_lead(answered)
        verdicts = [review.judge(r, rules=rules, contaminated=bool(r["item"].get("contaminated")), near=config.near_miss_margin, sure=sure) for r in answered]
        counts.update(v.verdict for v in verdicts)
        vectors = corpus.vectors_of(answered)
        failure_rows.append(_failure(scores[label], answered, verdicts, rules, corpus.nearest(answered, vectors, config.nearest_sources)))
        found, groups = _groups(answered, verdicts, vectors, corpus)
        group_rows += groups
        verdict_rows += [{"benchmark": label, "item_id": r["item_id"], **asdict(v), "_group": g} for r, v, g in zip(answered, verdicts, found, strict=True)]
        tools.progress(1 + 3 * (done + 1) / len(by_task), 4, label)
    group_rows.sort(key=lambda g: (-g["n"], g["benchmark"], g["_group"]))
    numbers = {(g["benchmark"], g.pop("_group")): number for number, g in enumerate(group_rows)}
    for number, row in enumerate(group_rows):
        row["failure_group"] = number
    for row in verdict_rows:
        row["failure_group"] = numbers.get((row["benchmark"], row.pop("_group")))
    metrics = {
        "n": len(verdict_rows),
        "verdicts": {name: counts[name] for name in review.VERDICTS},
        "key_suspects": sum(row["key_suspect"] for row in verdict_rows), "failure_groups": len(group_rows),
        "summaries": {r["benchmark"]: r["summary"] for r in failure_rows},
    }  # fmt: skip
    return StageOutput({"verdicts": _table(verdict_rows), "failures": _table(failure_rows), "failure_groups": _group_table(group_rows)}, metrics)


def _groups(
    answered: Sequence[Row], verdicts: Sequence[review.Verdict], vectors: Any, corpus: _Corpus
) -> tuple[list[int | None], list[dict[str, Any]]]:  # fmt: skip
    """(group of every response, None where it is right; a row per group of this task)."""
    failed = [i for i, r in enumerate(answered) if not r["correct"]]
    subset = [_subset(r) for r in answered]
    sizes = Counter(subset)
    labels = failure_groups.group([(subset[i], verdicts[i].verdict) for i in failed], vectors[failed]) if failed else []
    of_response: list[int | None] = [None] * len(answered)
    for i, label in zip(failed, labels, strict=True):
        of_response[i] = label
    rows = []
    for label in sorted(set(labels)):
        members = [i for i, found in zip(failed, labels, strict=True) if found == label]
        near = failure_groups.closeness(vectors[members])
        members = [members[k] for k in sorted(range(len(members)), key=lambda k: (-round(float(near[k]), 6), members[k]))]
        subsets, kinds = {subset[i] for i in members}, {verdicts[i].verdict for i in members}
        documents = corpus.nearest_documents(vectors[members])
        rows.append({
            "_group": label, "benchmark": answered[0]["benchmark"], "category": answered[0]["category"], "subset": subsets.pop() if len(subsets) == 1 else "",
            "verdict": kinds.pop() if len(kinds) == 1 else "mixed", "n": len(members), "n_items": sum(sizes[s] for s in {subset[i] for i in members}),
            "words": corpus.words([answered[i] for i in members]), "item_ids": [answered[i]["item_id"] for i in members],
            "nearest_documents": json.dumps(documents[:SHOWN_DOCUMENTS]), "sources": json.dumps(_shares(documents)),
            "n_sampled": corpus.n_documents, "n_documents": corpus.n_all,
        })  # fmt: skip
    return of_response, rows


def _subset(response: Row) -> str:
    return str(response["item"].get("subset") or response["item"].get("source") or "")


def _shares(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sources by their share of the similarity of the nearest documents, largest first."""
    by_source: Counter[str] = Counter()
    for found in documents:
        by_source[found["source"]] += found["cosine"]
    whole = sum(by_source.values()) or 1.0
    return [{"source": name, "share": round(value / whole, 4)} for name, value in sorted(by_source.items(), key=lambda one: (-one[1], one[0]))]


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
    """TF-IDF vectors of a sample of training documents, and of the parts of the corpus (source and first part of the uri) they make up."""

    def __init__(self, documents: Any) -> None:
        import numpy as np
        from scipy import sparse

        place: dict[tuple[str, str], int] = {}
        self.documents: list[dict[str, Any]] = []
        part_rows, features = [], []
        for document, text in _sample(documents):
            features.append(_features(text))
            part_rows.append(place.setdefault((document["source"], part_of(document["uri"])), len(place)))
            self.documents.append(document)
        self.parts = list(place)
        self.n_documents = len(self.documents)
        self.n_all = documents.count_rows(filter=_training())
        self.idf = np.zeros(FEATURES, dtype=np.float32)
        if not self.parts:
            return
        counts = _counted(features)
        self.idf = np.log((1 + self.n_documents) / (1 + np.bincount(counts.indices, minlength=FEATURES))).astype(np.float32)
        membership = sparse.csr_matrix((np.ones(self.n_documents, dtype=np.float32), (part_rows, np.arange(self.n_documents))))
        self.document_vectors = self._weighted(counts)
        self.vectors = self._weighted(membership @ counts)

    def _weighted(self, counts: Any) -> Any:
        """Rows of log-scaled counts times idf, of length 1 (0 where nothing is known)."""
        import numpy as np
        from scipy import sparse

        counts = counts.tocsr(copy=True)
        counts.data = np.log1p(counts.data) * self.idf[counts.indices]
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        return sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ counts

    def vectors_of(self, answered: Sequence[Row]) -> Any:
        """A row per response: its prompt and choices, weighted as the documents are."""
        return self._weighted(_counted([_features(_text(r)) for r in answered]))

    def nearest_documents(self, vectors: Any) -> list[dict[str, Any]]:
        """The NEAREST_DOCUMENTS of the sample nearest to the middle of ``vectors``, with their cosine; [] where nothing is alike."""
        import numpy as np

        if not self.parts:
            return []
        middle = np.asarray(vectors.mean(axis=0)).ravel()
        cosine = np.asarray(self.document_vectors @ middle).ravel() / max(float(np.linalg.norm(middle)), 1e-12)
        best = sorted(np.flatnonzero(cosine > 0), key=lambda i: (-round(float(cosine[i]), 6), self.documents[i]["doc_id"]))[:NEAREST_DOCUMENTS]
        return [{**self.documents[i], "cosine": round(float(cosine[i]), 4)} for i in best]

    def words(self, answered: Sequence[Row]) -> list[str]:
        """The words these texts share that are rare in the corpus."""
        import math

        texts = Counter(word for r in answered for word in set(_WORD.findall(_text(r).lower())))
        weight = {word: n * float(self.idf[zlib.crc32(word.encode()) % FEATURES]) for word, n in texts.items() if len(word) < 40}
        return [word for word, value in sorted(weight.items(), key=lambda one: (-round(one[1], 4), one[0])) if not math.isclose(value, 0)][:SHOWN_WORDS]

    def nearest(self, answered: Sequence[Row], items: Any, k: int) -> list[dict[str, Any]]:
        """The ``k`` parts nearest to most failed items: how many, the mean cosine, and accuracy on all items nearest to the part."""
        import numpy as np

        if not self.parts or all(r["correct"] for r in answered):
            return []
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


def _training() -> Any:
    import pyarrow.dataset as ds

    return ds.field("split") == "train"


def _sample(documents: Any) -> Iterable[tuple[dict[str, Any], str]]:
    """(who it is, start of the text) of about SAMPLE_DOCUMENTS training documents: those with the smallest ids, which are hashes."""
    import pyarrow.dataset as ds

    n = documents.count_rows(filter=_training())
    share = min(1.0, SAMPLE_DOCUMENTS / max(1, n))
    chosen = _training() if share >= 1.0 else _training() & (ds.field("doc_id") < f"{int(share * 16**8):08x}")
    for batch in documents.scanner(columns=["doc_id", "interval", "source", "uri", "licence", "text"], filter=chosen, batch_size=256).to_batches():
        for row in batch.to_pylist():
            text = row.pop("text")
            yield row, text[:SAMPLE_CHARS]


def _text(response: Row) -> str:
    return f"{response['item'].get('prompt', '')} {' '.join(response['choices'])}"


def _counted(features: Sequence[Any]) -> Any:
    """Sparse counts [texts, FEATURES] of hashed features per text."""
    import numpy as np
    from scipy import sparse

    rows = np.repeat(np.arange(len(features)), [len(found) for found in features])
    entries = np.concatenate(features) if len(features) else np.empty(0, dtype=np.int32)
    counts = sparse.csr_matrix((np.ones(len(entries), dtype=np.float32), (rows, entries)), shape=(len(features), FEATURES))
    counts.sum_duplicates()
    return counts


def _features(text: str) -> Any:
    """Hashed words and word pairs of a text, with repetitions, int32 below FEATURES."""
    import numpy as np

    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    pairs = (words[:-1] * np.uint64(0x9E3779B1) + words[1:]) if len(words) > 1 else words[:0]
    return (np.concatenate((words, pairs ^ (pairs >> np.uint64(17)))) % np.uint64(FEATURES)).astype(np.int32)


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    types = {
        "margin": pa.float64(), "lead": pa.float64(), "second_choice": pa.int32(), "pattern": pa.string(), "pattern_agreement": pa.float64(),
        "failure_group": pa.int32(),
    }  # fmt: skip
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]})


def _group_table(rows: list[dict[str, Any]]) -> Any:
    """Also right when a model fails nowhere and there is no row."""
    import pyarrow as pa

    names = ("failure_group", "benchmark", "category", "subset", "verdict", "n", "n_items", "words", "item_ids", "nearest_documents", "sources", "n_sampled")
    types = {"failure_group": pa.int32(), **dict.fromkeys(("n", "n_items", "n_sampled", "n_documents"), pa.int64())}
    types |= {"words": pa.list_(pa.string()), "item_ids": pa.list_(pa.string())}
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in (*names, "n_documents")})
