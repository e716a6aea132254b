"""The options and actions of ``moeline model``: the card of a registered version. Standard library only, so that ``moeline --help`` stays quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jobs.contract import MoelineError

ABOUT = "Registered models: the card of a version."
DEFAULT = "moeline"  # the name every recipe registers its models under


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the actions to a group of commands; ``leaf`` makes one command with the options all have."""
    card = leaf(
        actions, "card", _card, "The model card of a registered version, from the tables as they are now: data, training, forecast, scores, cost, failures."
    )
    card.add_argument("model", metavar="NAME/VERSION", help="such as moeline/3 or moeline/champion; a version alone is one of moeline")


def parse(asked: str) -> tuple[str, str]:
    """(name, version) of ``moeline/3``, ``moeline/v3``, ``moeline/champion``, or of a version alone. Raises MoelineError for anything else."""
    name, _, version = asked.rpartition("/")
    number = version.removeprefix("v")
    if "/" in name or not (version == "champion" or (number.isascii() and number.isdigit())):
        raise MoelineError(f"Not a registered model: {asked!r}. Write NAME/VERSION, for example {DEFAULT}/3 or {DEFAULT}/champion.")
    return name or DEFAULT, version if version == "champion" else number


def _card(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import model_card, model_card_text

    found = model_card.of_version(env, *parse(arguments.model))
    text = model_card_text.render(found)
    if not arguments.json:
        print(text, end="")
    return {"card": text, "facts": found}
