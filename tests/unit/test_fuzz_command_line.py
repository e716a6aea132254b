"""Every value the command line takes, with what an attacker or a slip of the hand would write: an error in a sentence, and nothing run or written elsewhere.

Every command and option is found by asking the parser, so a new one is tried from its first day. No value names a file that matters: some options
write what they are given, and these tests may run as root.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import run
from jobs.cli import main, parser

SERVICES = {"up", "down", "run", "backfill", "lm-eval"}  # start or ask services (tests/integration), or are another program's command line
FETCHES = {("gauntlet", "fetch")}  # goes to the network
PAYLOADS = (
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "x' OR '1'='1", "\"; DROP TABLE costs; --", "../outside/file", "OUTSIDE/file",
    "{{ 7*7 }}{% raw %}", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "__import__('os').system('touch CANARY')", "%s%n", "a\nb", "-1", "", "null\0byte",
    "ü" * 300, "x" * 5000, "NaN", "1e400", "9" * 400, "file:///OUTSIDE/file", "\x1b]0;x\x07", "\ud800",
)  # fmt: skip


def commands() -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    def below(found: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
        groups = [action for action in found._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups:
            yield path, found
        for group in groups:
            for name, further in group.choices.items():
                yield from below(further, (*path, name))

    yield from below(parser(), ())


def taken(found: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options and arguments with a value, except where things run (--home, --env are tried apart)."""
    return [a for a in found._actions if a.nargs != 0 and a.dest not in ("help", "home", "env")]


TRIED = [(path, found, action) for path, found in commands() if path[0] not in SERVICES and path not in FETCHES for action in taken(found)]


def places(folder: Path) -> list[str]:
    """The payloads, with OUTSIDE as a folder beside the one the command runs in."""
    (folder / "outside").mkdir(exist_ok=True)
    return [value.replace("OUTSIDE", str(folder / "outside")) for value in PAYLOADS]


def words(action: argparse.Action, value: str) -> list[str]:
    return [f"{action.option_strings[-1]}={value}"] if action.option_strings else ["--", value]


def filler(action: argparse.Action) -> str:
    return str(next(iter(action.choices))) if action.choices else "1" if action.type in (int, float) else "nothing"


def line(path: tuple[str, ...], found: argparse.ArgumentParser, action: argparse.Action, value: str) -> list[str]:
    """The command with ``value`` for ``action`` and something harmless for everything else it needs; positional ones last."""
    others = [a for a in taken(found) if a is not action and (a.required if a.option_strings else a.nargs not in ("?", "*"))]
    options = [word for a in others if a.option_strings for word in words(a, filler(a))]
    positional = [value if a is action else filler(a) for a in taken(found) if not a.option_strings and (a is action or a in others)]
    if action.option_strings:
        options += words(action, value)
    return [*path, *options, *(["--", *positional] if positional else [])]


@pytest.mark.parametrize(("path", "found", "action"), TRIED, ids=[f"{' '.join(path)} {action.dest}" for path, _, action in TRIED])
def test_a_hostile_value_is_an_error_in_a_sentence(path, found, action, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MOELINE_HOME", str(tmp_path / "home"))
    for value in places(tmp_path):
        try:
            code = main(line(path, found, action, value))
        except SystemExit as ended:  # argparse's own refusal
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        assert code in (0, 1, 2, 3), (value, code)
        assert "Traceback" not in err and (code == 0 or err.strip() or out.strip()), (value, err)
        assert not list(tmp_path.rglob("CANARY")), value


@pytest.mark.parametrize("value", PAYLOADS)
def test_a_hostile_home_or_environment_too(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for option in ("--env", "--home"):
        try:
            code = main(["users", "list", "--json", f"{option}={value}"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        assert code in (0, 1, 2) and "Traceback" not in err
        assert code != 0 or json.loads(out) == {"users": {}}
        assert not list(tmp_path.rglob("CANARY"))


@pytest.mark.parametrize("stage", ["plan", "clean", "train", "no-such-stage"])
def test_a_task_process_refuses_what_a_params_form_may_hand_on(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOELINE_HOME", str(tmp_path / "home"))
    options = [word for action in run.parser()._actions if action.option_strings and action.nargs != 0 for word in action.option_strings[-1:]]
    assert {"--recipe", "--budget-usd", "--asked-by", "--approved-by", "--inputs"} <= set(options)
    for option in options:
        for value in places(tmp_path):
            try:
                code = run.main([stage, f"{option}={value}"])
            except SystemExit as ended:
                code = int(ended.code or 0)
            err = capsys.readouterr().err
            assert code in (0, 1, 2, 3) and "Traceback" not in err, (option, value)
            assert not list(tmp_path.rglob("CANARY"))


def test_all_commands_are_tried() -> None:
    assert len({path for path, _, _ in TRIED}) > 25 and {path[0] for path, _ in commands()} - {path[0] for path, _, _ in TRIED} <= SERVICES | {
        "status",
        "recipes",
        "upgrade",
    }
