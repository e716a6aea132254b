"""A model card as Hugging Face reads it: YAML metadata, then Markdown. Made of the facts of jobs/model_card.py and nothing else.

Names of sources, licences, rules and benchmarks are strangers' texts: they stand in code spans, where Markdown and HTML mean nothing, on one
line, cut to CHARACTERS. Change here: how a card reads. Not here: which facts there are (jobs/model_card.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "not measured"
CHARACTERS = 120
BUCKETS = 20  # licences, rules, scopes: the rest is added up
_LANGUAGE = re.compile(r"[a-z]{2,3}")  # ISO 639-1 or -3, as the Hub's metadata wants them
_LANGUAGE_SHARE = 0.01
_ONLY_ENDED_EARLY = ("ended_early", "steps_planned")  # else there is nothing to measure
Facts = Mapping[str, Any]


def render(facts: Facts, *, public_key: bytes | None = None) -> str:
    """The whole card. ``public_key`` (PEM): of the key this card is signed with, published on it."""
    version = "" if facts["version"] is None else f" version {plain(facts['version'])}"
    parts = [
        f"---\n{metadata(facts).to_yaml()}\n---\n\n# {plain(facts['name'])}{version}\n", _about(facts), _data(facts["data"]), _architecture(facts),
        _training(facts), _forecast(facts), _scores(facts["scores"]), _failures(facts["failures"]), _cost(facts), _limits(),
        _signature(public_key),
    ]  # fmt: skip
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def metadata(facts: Facts) -> Any:
    """huggingface_hub.ModelCardData: only what is known. ``datasets`` and ``co2_eq_emissions`` are not: the corpus is not on the Hub, emissions unknown."""
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type="text-generation", dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", row["benchmark"])[:CHARACTERS].strip("-.") or "benchmark",
            dataset_name=plain(row["benchmark"]), metric_type="accuracy", metric_value=round(row["accuracy"], 6), metric_name=f"accuracy, {row['shots']}-shot",
        )
        for row in facts["scores"] or () if not row["benchmark"].startswith("*") and _known(row["accuracy"])
    ]  # fmt: skip
    return ModelCardData(
        model_name=plain(facts["name"]), language=_languages(facts["data"]["kept_by_language"]), license="unknown", library_name="transformers",
        pipeline_tag="text-generation", tags=["mixture-of-experts", "dbrx", "moeline"], metrics=["accuracy"] if found else None, eval_results=found or None,
    )  # fmt: skip


def _languages(rows: Iterable[Facts] | None) -> list[str] | None:
    """Languages of at least 1 % of the documents whose language was measured."""
    counts: dict[str, int] = {}
    for row in rows or ():
        if row["bucket"]:
            counts[row["bucket"]] = counts.get(row["bucket"], 0) + row["documents"]
    least = _LANGUAGE_SHARE * sum(counts.values())
    return sorted(code for code, n in counts.items() if _LANGUAGE.fullmatch(code) and n >= least) or None


# -- sections ---------------------------------------------------------------------------------------------------------------


def _about(facts: Facts) -> str:
    checkpoint = facts["checkpoint"]
    rows = [
        ("recipe", code(facts["recipe"])), ("registered", plain(facts["registered_at"]) if facts["registered_at"] else "with the model beside this card"),
        ("checkpoint", f"step {number(checkpoint['step'], ',d')}, sha256 {code(checkpoint['sha256'])}"),
        ("code", ", ".join(map(code, facts["code_revisions"])) or MISSING),
        *((f"run key of {stage}", code(key)) for stage, key in facts["run_keys"].items()),
    ]  # fmt: skip
    text = "A base language model (mixture of experts in DBRX's layout): it continues text and is not tuned to follow instructions.\n\n" + table(("", ""), rows)
    if facts["gates"]:
        text += "\nGates at registration:\n\n" + table(
            ("gate", "observed", "limit", "passed"),
            [(code(g.get("name")), number(g.get("observed")), number(g.get("limit")), "yes" if g.get("passed") else "NO") for g in facts["gates"]],
        )
    return text


def _data(data: Facts) -> str:
    names = sorted({name for tables in data["days"].values() for name in tables})
    lines = ["## Data\n", f"Trained on {code(data['sequences'])}. Tables, by day:\n"]
    lines += [table(("day", *names), [(plain(day), *(code(tables.get(name)) for name in names)) for day, tables in data["days"].items()])]
    if data["not_counted"]:
        lines.append(f"Not counted, so not in the numbers below: {', '.join(map(plain, data['not_counted']))}.\n")
    lines.append("Documents of every source by what became of them:\n")
    ends = ("landed", "rejected", "duplicate", "contaminated", "held_out", "kept")
    lines.append(table(
        ("source", *ends, "kept tokens", "tokens trained on", "epochs"),
        [(code(s), *(number(f.get(e, {}).get("documents"), ",d") for e in ends), number(f.get("kept", {}).get("tokens"), ",d"), *_read(data, s))
         for s, f in (data["funnel"] or {}).items()],
    ))  # fmt: skip
    for title, key, bucket in (
        ("Licences of what was kept", "kept_by_licence", "licence"), ("Licences of what landed", "landed_by_licence", "licence"),
        ("Languages of what was kept", "kept_by_language", "language"), ("Rejected, by the first rule broken", "rejected_by_first_rule", "rule"),
        ("Dropped as copies", "duplicate_by_scope", "scope"), ("Dropped for words of a benchmark item", "contaminated_by_benchmark", "benchmark"),
    ):  # fmt: skip
        lines += [f"{title}:\n", _buckets(data[key], bucket)]
    cut = number(data["cut_documents"], ",d")
    lines.append(f"Documents kept without the passages that quote benchmark items: {cut}. Items found in the corpus, and those its kept text still holds:\n")
    items = data["contaminated_items"]
    lines.append(
        table(
            ("benchmark", "items", "still held"),
            [(code(b), number(n["items"], ",d"), number(n["still_train"], ",d")) for b, n in (items or {}).items()],
            items is not None,
        )
    )
    return "\n".join(lines)


def _read(data: Facts, source: str) -> tuple[str, str]:
    read = (data["read"] or {}).get(source, {})
    return number(read.get("tokens"), ",d"), number(read.get("epochs"))


def _buckets(rows: Sequence[Facts] | None, bucket: str) -> str:
    """Documents by source and bucket; ``rows`` None: not measured, []: none."""
    if rows is None:
        return table((bucket,), ())
    rest = sum(row["documents"] for row in rows[BUCKETS:])
    found = [(code(row["source"]), code(row["bucket"] or "unknown"), number(row["documents"], ",d")) for row in rows[:BUCKETS]]
    return table(("source", bucket, "documents"), [*found, *([("", f"{len(rows) - BUCKETS} more", number(rest, ",d"))] if rest else [])], measured=True)


def _architecture(facts: Facts) -> str:
    trained = facts["trained"]
    rows = [("parameters", number(trained["params_total"], ",d")), ("parameters a token passes through", number(trained["params_active"], ",d"))]
    rows += [(code(name), code(value)) for name, value in sorted((facts["model"] or {}).items())]
    return f"## Architecture\n\nTokenizer: {code(trained['tokenizer_id'])}.\n\n" + table(("", ""), rows)


def _training(facts: Facts) -> str:
    trained, asked = facts["trained"], facts["training"]
    rows = [(code(name), code(value)) for name, value in sorted((asked or {}).items())]
    shown = [name for name in trained if not name.startswith("params_") and (trained[name] is not None or name not in _ONLY_ENDED_EARLY)]
    rows += [(name.replace("_", " "), code(value) if isinstance(value, str) else number(value)) for name, value in trained.items() if name in shown]
    rows.append(("held by its attempts", "; ".join(facts["hardware"]) if facts["hardware"] else MISSING))
    early = "It ended before its planned end, so no forecast is held against it.\n\n" if trained["ended_early"] else ""
    return f"## Training\n\n{early}Losses are nats per token; the unigram loss is that of guessing by frequency alone.\n\n" + table(("", ""), rows)


def _forecast(facts: Facts) -> str:
    rows = facts["forecast"]
    shown = [
        (code(r["metric"]), number(r["predicted"]), f"{number(r['low'])} to {number(r['high'])}", number(r["naive"]), number(r["outcome"]), _inside(r))
        for r in rows or ()
    ]
    hashed = sorted({r["content_hash"] for r in rows or ()})
    text = "## Forecast and outcome\n\n" + table(("", "forecast", "95 % interval", "naive forecast", "outcome", "inside"), shown)
    return text + (f"\nRegistered before the training as {', '.join(map(code, hashed))}.\n" if hashed else "")


def _inside(row: Facts) -> str:
    if not all(_known(row[name]) for name in ("low", "high", "outcome")):
        return MISSING
    return "yes" if row["low"] <= row["outcome"] <= row["high"] else "no"


def _scores(rows: Sequence[Facts] | None) -> str:
    heads = (
        "benchmark", "shots", "items", "accuracy", "standard error", "guessing", "best fixed answer", "score above baseline", "accuracy on clean items",
        "contaminated items",
    )  # fmt: skip

    def line(r: Facts) -> tuple[str, ...]:
        own = {"**": "**average**", "*": f"category {code(r['category'])}"}.get(r["benchmark"]) or code(r["benchmark"])
        return (
            own, number(r["shots"], "d"), number(r["n"], ",d"),
            *(number(r[k], ".4f") for k in ("accuracy", "stderr", "chance", "best_constant", "score", "accuracy_clean")),
            number(r["n_contaminated"], ",d"),
        )  # fmt: skip

    ordered = sorted(rows or (), key=lambda r: ({"**": 0, "*": 1}.get(r["benchmark"], 2), r["category"], r["benchmark"]))
    return "## Scores\n\nThe baseline of a score is the better of guessing and the best fixed answer.\n\n" + table(heads, map(line, ordered))


def _failures(failures: Facts | None) -> str:
    title = "## Known failures\n\n"
    if failures is None:
        return f"{title}{MISSING}: the review of this model's answers is not recorded.\n"
    kinds = sorted({kind for task in failures["tasks"] for kind in task["verdicts"]})
    tasks = [
        (code(t["benchmark"]), number(t["n"], ",d"), number(t["n_failed"], ",d"), *(number(t["verdicts"].get(k), ",d") for k in kinds))
        for t in failures["tasks"]
    ]
    text = title + "Every answer was judged:\n\n" + table(("benchmark", "items", "failed", *(k.replace("_", " ") for k in kinds)), tasks, measured=True)
    groups = [
        (code(g["benchmark"]), code(g["category"]), code(g["subset"] or "-"), code(g["verdict"]), f"{number(g['n'], ',d')} of {number(g['n_items'], ',d')}",
         ", ".join(f"{code(s['source'])} {number(s['share'], '.0%')}" for s in g["sources"][:3]) or MISSING)
        for g in failures["groups"] or ()
    ]  # fmt: skip
    text += f"\nFailures that belong together, the largest of {number(failures['n_groups'], ',d')} groups:\n\n"
    text += table(("benchmark", "category", "subset", "verdict", "failed", "nearest sources"), groups, failures["groups"] is not None)
    return text + f"\nAnswers whose key is suspect: {number(failures['key_suspects'], ',d')}.\n"


def _cost(facts: Facts) -> str:
    cost = facts["cost"]

    def line(name: str, sums: Facts | None) -> tuple[str, ...]:
        found = sums or {}
        return (
            name,
            number(found.get("cost_usd")),
            number(found.get("energy_kwh")),
            number(found.get("wall_seconds"), ".4g"),
            number(found.get("attempts"), "d"),
        )

    text = "## Cost and energy\n\nEvery attempt, failed ones too, until this card was written. The corpus counts in full, though other models may share it.\n\n"
    rows = [*(line(code(phase), sums) for phase, sums in cost["phases"].items()), line("all", cost["total"])]
    text += table(("phase", f"cost, {plain(', '.join(cost['currency'])) or 'USD'}", "energy, kWh", "seconds", "attempts"), rows)
    text += f"\nOf it for attempts that failed or were killed: {number(cost['wasted_usd'])}."
    text += f" Energy: {', '.join(map(code, cost['energy_methods'])) or MISSING}. Emissions: {MISSING}.\n"
    return text + (f"\nWithout a recorded charge: {', '.join(map(code, cost['without_charges']))}.\n" if cost["without_charges"] else "")


def _limits() -> str:
    return (
        f"## Limits\n\nSafety, bias and toxicity of what it writes: {MISSING}. The weights carry no licence of their own; those of the training data "
        "are under Data. Wherever a number was not taken, this card says so.\n"
    )


def _signature(public_key: bytes | None) -> str:
    """How to check the signature. The key on a card proves nothing by itself: a forger would print another, so it is compared with one had elsewhere."""
    if public_key is None:
        return ""
    from models import signature

    return (
        f"## Signature\n\nEvery file of this folder is signed (`{signature.FILE}`, OpenSSF Model Signing v1.0, ECDSA P-256). Key, sha256 of its PEM file:\n"
        f"`{signature.fingerprint(public_key)}`. Compare it with what the registry or those who trained the model say, then check: `moeline model verify`,\n"
        f"or `model_signing verify key FOLDER --signature FOLDER/{signature.FILE} --public_key {signature.KEY_FILE}`.\n\n```\n{public_key.decode()}```\n"
    )


# -- words and numbers ------------------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """A stranger's text on one line, of printable characters, without any that mean something in YAML's frame, Markdown or HTML."""
    return re.sub(r"[^\w .,:+()-]", "?", _line(text))


def code(text: object) -> str:
    """A stranger's text as a Markdown code span, safe inside a table; None: not measured. A vertical bar is shown as a broken one, which parts no cells."""
    if text is None or text == "":
        return MISSING
    shown = _line(text).replace("|", "\u00a6")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if len(fence) > 1 or shown[:1] == " " else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _line(text: object) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in str(text))
    return shown if len(shown) <= CHARACTERS else f"{shown[: CHARACTERS - 1]}\u2026"


def _known(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, form: str = ".6g") -> str:
    """A number as text; None and what is no finite number: not measured."""
    return format(value, form) if _known(value) else MISSING


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], measured: bool | None = None) -> str:
    """A Markdown table. Without rows: ``none`` where it was ``measured``, else ``not measured``."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return f"{'none' if measured else MISSING}\n"
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines]) + "\n"
