"""datatrove's side of bench_prepare.py; runs in an environment with datatrove==0.10.1, spacy and orjson, not in moeline's.

Usage: prepare_datatrove.py run LANDING OUT RULES    one timed run: filters and the four MinHash steps, a mark (a JSON line) after each
       prepare_datatrove.py explain CASES            reads {source, uri, text, normalised} a line, adds the definition that makes the verdicts equal
       prepare_datatrove.py clusters OUT             the clusters of a run, as {source/uri: cluster}
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

WORKERS, TASKS = 2, 8
# In FineWeb's order. Its share of words with letters counts punctuation marks as words and would refuse most documentation (rules/gopher.py): it is
# switched off here, so that both have about as much to deduplicate.
FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": partial(GopherQualityFilter, max_non_alpha_words_ratio=None),
    "fineweb": FineWebQualityFilter,
}
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def mark(step: str) -> None:
    print(json.dumps({"step": step, "at": time.time()}), flush=True)


def execute(out: Path, step: str, tasks: int, *pipeline: Any) -> None:
    LocalPipelineExecutor(list(pipeline), tasks=tasks, workers=WORKERS, logging_dir=str(out / "logs" / step)).run()


def run(landing: Path, out: Path, rules: dict[str, list[str]]) -> None:
    mark("start")
    for source, names in sorted(rules.items()):
        filters = [FILTERS[name]() for name in FILTERS if name in names]
        writer = JsonlWriter(str(out / "kept" / source), compression=None)
        execute(out, f"filter-{source}", TASKS, JsonlReader(str(landing / source), id_key="uri"), *filters, writer)
    mark("clean")
    kept = JsonlReader(str(out / "kept"), doc_progress=False)
    execute(out, "signatures", TASKS, kept, MinhashDedupSignature(str(out / "signatures"), config=MINHASH))
    execute(out, "buckets", MINHASH.num_buckets, MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=MINHASH))
    execute(out, "cluster", 1, MinhashDedupCluster(str(out / "buckets"), str(out / "removed"), config=MINHASH))
    execute(out, "unique", TASKS, kept, MinhashDedupFilter(str(out / "removed")), JsonlWriter(str(out / "unique"), compression=None))
    mark("deduplicate")


def clusters(out: Path) -> None:
    """Steps 3 and 4 again, with the cluster of each document."""
    named = out / "named"
    execute(named, "cluster", 1, MinhashDedupCluster(str(out / "buckets"), str(named / "removed"), config=MINHASH, save_cluster_id=True))
    excluded = JsonlWriter(str(named / "excluded"), compression=None)
    step = MinhashDedupFilter(str(named / "removed"), exclusion_writer=excluded, load_cluster_ids=True)
    execute(named, "unique", TASKS, JsonlReader(str(out / "kept")), step, JsonlWriter(str(named / "unique"), compression=None))
    for file in sorted(named.glob("*/*.jsonl")):
        for line in file.read_text().split("\n"):
            if line:
                row = json.loads(line)
                print(json.dumps({"id": row["id"], "kept": file.parent.name == "unique", "cluster": row["metadata"].get("minhash_cluster_id", -1)}))


DEFINITIONS = {
    "normalised text": "moeline repairs encodings and drops control characters before it judges",
    "words": "a regular expression in place of spaCy's tokenizer (rules/features.py)",
    "letters": "the share of words with letters is judged by moeline only",
    "blank ends": "blank lines at the ends of a text are no lines (rules/gopher.py)",
}


def verdicts(case: dict[str, str], names: list[str], theirs: tuple[str, ...]) -> tuple[bool, bool]:
    """(datatrove keeps, moeline keeps) when moeline uses datatrove's definitions in ``theirs``."""
    from jobs.stages import rules

    text, judged = case["text"], case["text"] if "normalised text" in theirs else case["normalised"]
    if "blank ends" in theirs:
        text, judged = text.strip(), judged.strip()
    keeps = all(FILTERS[name]().filter(Document(text=text, id="")) is True for name in names)
    measured = rules.features(names, judged)
    if "words" in theirs:
        words = split_into_words(judged)
        measured.once("words", lambda: words)
        measured.once("plain_word_counts", lambda: Counter(w for w in words if any(c not in PUNCTUATION_SET for c in w)))
    left_out = {"gopher_quality.letter_word_share"} if "letters" in theirs else set()
    kept = all(rule.broken_limit(float(rule.measure(measured))) is None for rule in rules.select(names) if rule.name not in left_out)
    return keeps, kept


def explain(cases: Path, rules: dict[str, list[str]]) -> None:
    """The smallest set of definitions that makes the verdicts equal, for each document on which they differ."""
    subsets = [subset for size in range(1, len(DEFINITIONS) + 1) for subset in combinations(DEFINITIONS, size)]
    for line in cases.read_text().split("\n"):
        if line:
            case = json.loads(line)
            found = (subset for subset in subsets if len(set(verdicts(case, rules[case["source"]], subset))) == 1)
            print(json.dumps({"id": f"{case['source']}/{case['uri']}", "definition": " + ".join(next(found, ("unexplained",)))}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
    elif sys.argv[1] == "clusters":
        clusters(Path(sys.argv[2]))
    else:
        explain(Path(sys.argv[2]), json.loads(sys.argv[3]))
