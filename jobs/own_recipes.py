"""Recipes that are files: what one changes of a built-in recipe (tokens, sources, mixture, budget, proxies), in ``<home>/recipes/NAME.json``.

Change here: what such a file may say, how it is written and read. Not here: the built-in recipes (jobs/recipes.py), what is proposed
(jobs/proposals.py). A file is written by whoever may write to the home and is trusted with nothing else: every field is checked.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs import proxies, recipes, sizing
from jobs.config import Recipe, TrainConfig
from jobs.contract import MoelineError
from models.mixture import Mixture, Phase

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # a file name, an argument and a value in Airflow's form
MAX_BYTES = 64 << 10
MAX_TOKENS = 10**15
MAX_USD = 1e12
MAX_WHY = 2000
_KEYS = ("base", "tokens", "sources", "mixture", "budget_usd", "why", "proxies")
MAX_SOURCES = 1000
MAX_PROXIES = 16


@dataclass(frozen=True, kw_only=True)
class OwnRecipe:
    """What is asked of ``base`` (a built-in recipe): ``tokens`` to train on, of ``sources`` only, for at most ``budget_usd`` (None: as the base).

    ``mixture`` (None: as the base): one phase, in the file {"weights": {source: number}, "max_epochs": {source or "*": number}}. Its sequences
    hold one source each, so the corpus is packed anew where the base does not pack so. ``proxies`` (None: by the rule of every recipe): (heads, tokens)
    of each, from `moeline forecast plan`.
    """

    base: str
    tokens: int
    sources: tuple[str, ...] | None = None
    mixture: Mixture | None = None
    budget_usd: float | None = None
    why: str = ""  # for people; no part of the work's identity
    proxies: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise MoelineError(problem)

    def recipe(self, name: str) -> Recipe:
        """The recipe itself, called ``name``."""
        base = replace(recipes.RECIPES[self.base](), name=name)
        if self.mixture is not None:
            base = replace(base, train=replace(base.train, mixture=self.mixture), pack=replace(base.pack, separate_sources=True))
        made = recipes.with_tokens(base, self.tokens)
        if self.proxies is not None:
            made = replace(made, proxies=tuple(proxies.narrowed(made.train, heads, tokens) for heads, tokens in self.proxies))
        if self.sources is not None:
            made = replace(made, ingest=replace(made.ingest, sources=self.sources))
        return made if self.budget_usd is None else replace(made, budget_usd=self.budget_usd)


def _problem(own: OwnRecipe) -> str | None:
    """What is wrong with the fields, in a sentence; None when nothing is. Types are checked too: a file can hold anything."""
    if not isinstance(own.base, str) or own.base not in recipes.RECIPES:
        return f"The base of an own recipe is a built-in one ({', '.join(sorted(recipes.RECIPES))}), not {_shown(own.base)}."
    train = recipes.RECIPES[own.base]().train
    least = 10 * train.tokens_per_step  # the smallest proxy takes a tenth and needs a step
    if type(own.tokens) is not int or not least <= own.tokens <= MAX_TOKENS:
        return f"tokens must be a whole number from {least:,} (ten steps of {own.base}) to {MAX_TOKENS:,}, not {_shown(own.tokens)}."
    if problem := (
        (own.sources is not None and _sources_problem(own.sources)) or (own.mixture is not None and _mixture_problem(own.mixture))
        or (own.proxies is not None and _proxies_problem(own.proxies, replace(train, tokens=own.tokens)))
    ):  # fmt: skip
        return problem
    if own.budget_usd is not None and not (type(own.budget_usd) in (int, float) and 0 < own.budget_usd <= MAX_USD):
        return f"budget_usd must be a number above 0 and at most {MAX_USD:.0f}, not {_shown(own.budget_usd)}."
    if not isinstance(own.why, str) or len(own.why) > MAX_WHY or not own.why.isprintable():
        return f"why must be one line of at most {MAX_WHY} printable characters."
    return None


def _proxies_problem(asked: Any, train: TrainConfig) -> str | None:
    """None for 4 to MAX_PROXIES different pairs that can be proxies of ``train``."""
    if not isinstance(asked, tuple) or not 4 <= len(asked) <= MAX_PROXIES or len(set(map(str, asked))) < len(asked):
        return f"proxies must be a list of 4 to {MAX_PROXIES} different pairs of heads and tokens, not {_shown(asked)}; leave it out for the usual ones."
    for pair in asked:
        whole = isinstance(pair, tuple) and len(pair) == 2 and all(type(number) is int for number in pair)
        if not whole or not 1 <= pair[0] <= train.model.n_heads or not train.tokens_per_step <= pair[1] <= train.tokens:
            return f"proxies holds {_shown(pair)}; each is [heads, tokens] with at most the {train.model.n_heads} heads and {train.tokens:,} tokens of the run."
        try:
            proxies.narrowed(train, *pair)
        except ValueError as error:
            return f"proxies holds {_shown(pair)}, which is no model: {error}."
    return None


def _sources_problem(sources: Any) -> str | None:
    if not isinstance(sources, tuple) or not 1 <= len(sources) <= 1000:
        return f"sources must be a list of 1 to 1000 names of landing folders, not {_shown(sources)}; leave it out for the sources of the base."
    for name in sources:
        if not isinstance(name, str) or not 1 <= len(name) <= 200 or name.startswith(".") or "/" in name or not name.isprintable():
            return f"sources holds {_shown(name)}, which is no name of a folder in the landing zone."
    if list(sources) != sorted(set(sources)):
        return "sources must be sorted and name every source once, so that the same recipe is always the same work."
    return None


def _mixture_problem(mixture: Any) -> str | None:
    """None for a mixture of one phase whose names and numbers can be used."""
    if not isinstance(mixture, Mixture):
        return f'mixture must be an object {{"weights": {{source: number}}, "max_epochs": {{source or "*": number}}}}, not {_shown(mixture)}.'
    if len(mixture.phases) != 1:
        return f"mixture has {len(mixture.phases)} phases; a recipe in a file has one. Write a function in jobs/recipes.py for several."
    named = [name for name, _ in (*mixture.phases[0].weights, *mixture.max_epochs)]
    if len(named) > 2 * MAX_SOURCES or any(not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable() for name in named):
        return f"mixture must name at most {MAX_SOURCES} sources in printable characters, found {_shown(named)}."
    return None


def _mixture(raw: Any) -> Any:
    """The mixture of a file; what is none of this form is given back for _mixture_problem to name. MoelineError for numbers that cannot be meant."""
    if not isinstance(raw, dict) or set(raw) - {"weights", "max_epochs"} or not isinstance(raw.get("weights"), dict):
        return raw
    caps = raw.get("max_epochs", {})
    if not isinstance(caps, dict) or any(type(number) not in (int, float) for number in (*raw["weights"].values(), *caps.values())):
        return raw
    try:
        return Mixture(phases=(Phase(weights=tuple(raw["weights"].items())),), max_epochs=tuple(caps.items()))
    except (ValueError, OverflowError) as error:
        raise MoelineError(f"mixture cannot be used: {_shown(str(error))}.") from None


def _plain_mixture(mixture: Mixture) -> dict[str, Any]:
    return {"weights": dict(mixture.phases[0].weights), "max_epochs": dict(mixture.max_epochs)}


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def folder(home: Path) -> Path:
    return home / "recipes"


def _file(home: Path, name: str) -> Path:
    """Where the recipe called ``name`` lies; raises MoelineError for anything that is not a plain name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MoelineError(f"Not a name for a recipe: {_shown(name)}. Use a small letter, then up to 63 small letters, digits, _ or -.")
    return folder(home) / f"{name}.json"


def names(home: Path) -> list[str]:
    """Names of the files in the folder that can be a recipe's; whether they are whole is found on loading."""
    return sorted(f.stem for f in folder(home).glob("*.json") if NAME.fullmatch(f.stem) and f.stem not in recipes.RECIPES)


def exists(home: Path, name: str) -> bool:
    return bool(NAME.fullmatch(name)) and _file(home, name).exists()


def load(home: Path, name: str) -> Recipe:
    """The recipe in the file called ``name``; raises MoelineError saying what is wrong with it."""
    return read(home, name).recipe(name)


def read(home: Path, name: str) -> OwnRecipe:
    """What the file called ``name`` says; raises MoelineError when it is missing, too large, no JSON object of this form or not a plain file."""
    file = _file(home, name)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise MoelineError(f"{file} is not a plain file. Remove it, or put the recipe's JSON there.")
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise MoelineError(f"{file} cannot be read: {error.strerror}. `moeline recipes` lists the recipes there are.") from None
    try:
        if len(content) > MAX_BYTES:
            raise MoelineError(f"it is larger than {MAX_BYTES:,} bytes.")
        return _parsed(content)
    except MoelineError as problem:
        raise MoelineError(f"{file} is not a recipe: {problem} Mend it, or remove it and make it again with `moeline propose`.") from None


def _parsed(content: bytes) -> OwnRecipe:
    try:
        raw = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MoelineError(f"it cannot be read as JSON ({_shown(str(error))}).") from None
    if not isinstance(raw, dict):
        raise MoelineError(f"it holds {_shown(raw)}, not an object.")
    if unknown := sorted(set(raw) - set(_KEYS)):
        raise MoelineError(f"it has the unknown key {_shown(unknown[0])}; known are {', '.join(_KEYS)}.")
    if absent := [key for key in ("base", "tokens") if key not in raw]:
        raise MoelineError(f"it does not say {' and '.join(absent)}.")
    sources = raw.get("sources")
    mixture = None if raw.get("mixture") is None else _mixture(raw["mixture"])
    asked = raw.get("proxies")
    if isinstance(asked, list):
        asked = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in asked)
    return OwnRecipe(**{**raw, "sources": tuple(sources) if isinstance(sources, list) else sources, "mixture": mixture, "proxies": asked})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def save(home: Path, name: str, own: OwnRecipe) -> bool:
    """Write the recipe; False when exactly it was there already. Raises MoelineError for a name in use by another recipe.

    The file appears whole and never replaces another one, however many processes write the same name at once.
    """
    file = _file(home, name)
    if name in recipes.RECIPES:
        raise MoelineError(f"{name} is a built-in recipe. Give this one another name.")
    fields = {**asdict(own), "mixture": None if own.mixture is None else _plain_mixture(own.mixture)}
    content = json.dumps({key: value for key, value in fields.items() if value not in (None, "")}, indent=1, ensure_ascii=True) + "\n"
    if len(content) > MAX_BYTES:
        raise MoelineError(f"Recipe {name} would be larger than {MAX_BYTES:,} bytes: it names too many sources.")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{name}.{os.getpid()}-{os.urandom(6).hex()}.tmp")
    try:
        with open(temporary, "w", encoding="ascii") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.link(temporary, file)
        return True
    except FileExistsError:
        if read(home, name) == own:
            return False
        raise MoelineError(f"Recipe {name} exists and says something else: {file}. Give this one another name, or remove that file.") from None
    finally:
        temporary.unlink(missing_ok=True)


def listing(home: Path) -> list[dict[str, Any]]:
    """Every recipe there is, built-in ones first; a file that is not a recipe is listed with its ``problem``."""
    found = [_about(make(), None) for make in recipes.RECIPES.values()]
    for name in names(home):
        try:
            own = read(home, name)
            found.append(_about(own.recipe(name), own))
        except MoelineError as problem:
            found.append({"name": name, "problem": str(problem)})
    return found


def _about(recipe: Recipe, own: OwnRecipe | None) -> dict[str, Any]:
    mixture = _plain_mixture(own.mixture)["weights"] if own and own.mixture else None
    return {
        "name": recipe.name, "base": own.base if own else None, "tokens": recipe.tokens, **sizing.size(recipe), "sources": list(recipe.ingest.sources),
        "budget_usd": recipe.budget_usd, "why": own.why if own else "", "mixture": mixture, "problem": None,
    }  # fmt: skip


def render(found: list[Mapping[str, Any]]) -> str:
    """The listing as lines for a terminal."""
    lines = []
    for row in found:
        if row["problem"]:
            lines.append(f"{row['name']:<24} CANNOT BE USED: {row['problem']}")
            continue
        kind = f"own, from {row['base']}" if row["base"] else "built in"
        sources = f", only {', '.join(row['sources'])}" if row["sources"] else ""
        if row["mixture"]:
            total = sum(row["mixture"].values())
            sources += ", weighed " + ", ".join(f"{name} {weight / total:.0%}" for name, weight in row["mixture"].items())
        why = f" ({row['why']})" if row["why"] else ""
        lines.append(f"{row['name']:<24} {kind}: {row['tokens']:,} tokens, {_sized(row)}, budget ${row['budget_usd']:,.2f}{sources}{why}")
    return "\n".join(lines) + "\n"


def _sized(row: Mapping[str, Any]) -> str:
    hours = f", {row['gpu_hours']:,.0f} GPU hours" if row["gpu_hours"] >= 1 else ""
    parameters = f"{row['params_total']:,} parameters ({row['params_active']:,} active)"
    return f"{parameters}, {row['flops']:.2g} FLOPs, {row['state_gib']:,.1f} GiB of training state{hours}"
