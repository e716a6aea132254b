"""The options and actions of ``moeline model``: card, signature and files of a registered version. Standard library only: --help stays quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError

ABOUT = "Registered models: the card of a version, its signature, its files."
DEFAULT = "moeline"  # the name every recipe registers its models under


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the actions to a group of commands; ``leaf`` makes one command with the options all have."""
    card = leaf(
        actions, "card", _card, "The model card of a registered version, from the tables as they are now: data, training, forecast, scores, cost, failures."
    )
    card.add_argument("model", metavar="NAME/VERSION", help="such as moeline/3 or moeline/champion; a version alone is one of moeline")
    card.add_argument("--stored", action="store_true", help="the card that is signed and stored with the model, after checking the signature")
    check = leaf(actions, "verify", _verify, "Check the signature of a registered version, or of a model folder: every file, none changed, missing or added.")
    check.add_argument("model", metavar="NAME/VERSION|FOLDER", help="such as moeline/3 or moeline/champion, or a folder with a signature")
    check.add_argument("--key", metavar="FILE", help="the public key to check with (default: those in the home's folder keys, or MOELINE_MODEL_KEY)")
    written = leaf(actions, "export", _export, "Write a registered version as a Hugging Face folder, after checking its signature.")
    written.add_argument("model", metavar="NAME/VERSION", help="as above")
    written.add_argument("--out", required=True, metavar="DIR", help="a new folder")


def parse(asked: str) -> tuple[str, str]:
    """(name, version) of ``moeline/3``, ``moeline/v3``, ``moeline/champion``, or of a version alone. Raises MoelineError for anything else."""
    name, _, version = asked.rpartition("/")
    number = version.removeprefix("v")
    if set(name) & set("/:") or not (version == "champion" or (number.isascii() and number.isdigit())):
        raise MoelineError(f"Not a registered model: {asked!r}. Write NAME/VERSION, for example {DEFAULT}/3 or {DEFAULT}/champion.")
    return name or DEFAULT, version if version == "champion" else number


def _card(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import model_card, model_card_text, registered

    if arguments.stored:
        with registered.opened(env, *parse(arguments.model)) as (folder, verified):
            text = (folder / registered.CARD).read_text()
        if not arguments.json:
            print(text, end="")
        return {"card": text, "key": verified.key}
    found = model_card.of_version(env, *parse(arguments.model))
    text = model_card_text.render(found)
    if not arguments.json:
        print(text, end="")
    return {"card": text, "facts": found}


def _verify(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    import dataclasses

    from jobs import registered
    from jobs.services import signing_key

    key = Path(arguments.key) if arguments.key else None
    if Path(arguments.model).is_dir():
        verified = signing_key.verify(Path(arguments.model), env.home, key)
    else:
        with registered.opened(env, *parse(arguments.model), key) as (_, verified):
            pass
    if not arguments.json:
        print(f"{arguments.model}: {verified.files} files are as they were signed by key {verified.key}")
    return {"model": arguments.model, **dataclasses.asdict(verified)}


def _export(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    from jobs import registered

    verified = registered.export(env, *parse(arguments.model), Path(arguments.out))
    if not arguments.json:
        print(f"{arguments.model} is in {arguments.out}, as signed by key {verified.key}")
    return {"model": arguments.model, "out": arguments.out, "key": verified.key}
