"""The layout holds: imports go one way, files and functions stay small, the tables and stages declare the same things."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from expectations.tables import TABLES
from jobs import config, recipes

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dags", "jobs", "models", "expectations", "infra")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

# folder -> what its files may not import, and what to do instead
FORBIDDEN = {
    "dags": (("jobs", "models", "expectations", "torch", "pyspark", "ray", "mlflow"), "start `python -m jobs.run` through stage_task"),
    "jobs/stages": (("airflow", "jobs.run", "jobs.cli", "dags", "infra"), "take what you need from tools"),
    "jobs": (("airflow", "dags", "infra"), "talk to Airflow through jobs/services/airflow.py (HTTP)"),
    "models": (("jobs", "dags", "infra", "expectations", "ray", "pyspark", "mlflow", "airflow", "great_expectations"), "services belong in jobs/services"),
    "expectations": (("jobs", "dags", "infra", "models"), "expectations know nothing of the project"),
    "infra": (("jobs.stages", "jobs.run", "models", "expectations", "dags"), "the page reads through jobs.services.report"),
}


def imported_names(file: Path) -> list[tuple[str, int]]:
    """Every module a file imports anywhere, with its line."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(node.module, node.lineno), *((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)]
    return found


def breaches(file: Path) -> list[str]:
    relative = file.relative_to(ROOT).as_posix()
    found = []
    for folder, (modules, fix) in FORBIDDEN.items():
        if not relative.startswith(f"{folder}/"):
            continue
        for name, line in imported_names(file):
            if any(name == module or name.startswith(f"{module}.") for module in modules):
                found.append(f"{relative}:{line} imports {name}: {fix}")
    if relative.startswith("jobs/stages/") and relative.count("/") == 2:
        others = {p.stem for p in (ROOT / "jobs/stages").glob("*.py")} - {file.stem, "__init__"}
        found += [
            f"{relative}:{line} imports {name}: stages never import each other"
            for name, line in imported_names(file)
            if name in {f"jobs.stages.{o}" for o in others}
        ]
    return found


def test_imports_go_one_way():
    assert [b for file in SOURCES for b in breaches(file)] == []


def test_a_breach_is_found_and_named(tmp_path, monkeypatch):
    planted = ROOT / "models" / "_planted_breach.py"
    planted.write_text("def f():\n    import ray\n")
    try:
        assert breaches(planted) == ["models/_planted_breach.py:2 imports ray: services belong in jobs/services"]
    finally:
        planted.unlink()


def test_only_check_imports_great_expectations():
    users = {f.relative_to(ROOT).as_posix() for f in SOURCES for name, _ in imported_names(f) if name.startswith("great_expectations")}
    assert users == {"expectations/check.py"}


def test_files_and_functions_stay_small():
    long = []
    for file in SOURCES:
        text = file.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            long.append(f"{file.relative_to(ROOT)}: {text.count(chr(10))} lines, split it (limit {MAX_FILE_LINES})")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines (limit {MAX_FUNCTION_LINES})")
    assert long == []


@pytest.mark.parametrize("stage", config.STAGES)
def test_a_stage_declares_what_it_reads_and_writes(stage):
    module = importlib.import_module(f"jobs.stages.{stage}")
    assert module.ENGINE in ("spark", "arrow")
    assert isinstance(module.REVISION, int)
    assert set(module.READS) <= set(TABLES)
    assert set(module.READS.values()) <= {"interval", "other_intervals", "all"}
    assert {t for t, writer in config.WRITERS.items() if writer == stage} == set(module.WRITES)


def test_every_table_has_a_writer():
    assert set(TABLES) == set(config.WRITERS) | {"checks", "costs"}


def test_recipes_are_complete_and_hashable():
    from jobs.contract import run_key

    for name in recipes.RECIPES:
        recipe = recipes.load(name)
        assert recipe.name == name
        keys = {run_key(stage, 1, recipe.stage_config(stage), {}, None) for stage in config.STAGES}
        assert len(keys) == len(config.STAGES)


def test_nothing_names_a_package_registry_or_this_machine():
    # Written in pieces, so that this file does not contain what it looks for.
    words = ["pypi" + ".org", "files.python" + "hosted", "repo1." + "maven", "registry." + "npmjs", "/ro" + "ot/", "/wo" + "rk/"]
    suffixes = {".py", ".md", ".toml", ".lock", ".sh", ".cfg", ".yaml", ".yml", ".html", ".js", ".css", ""}
    named = []
    for file in ROOT.rglob("*"):
        parts = file.relative_to(ROOT).parts
        if (
            any(p in (".venv", ".git", ".moeline", ".jars", ".oracles", "__pycache__", ".uv", ".ruff_cache", ".pytest_cache", ".hypothesis") for p in parts)
            or not file.is_file()
            or file.suffix not in suffixes
        ):
            continue
        text = file.read_text(errors="ignore")
        named += [f"{file.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert named == []


def test_packages_are_declared():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        p.parent.relative_to(ROOT).as_posix().replace("/", ".") for package in ("jobs", "models", "expectations") for p in (ROOT / package).rglob("__init__.py")
    }
    assert found <= declared


def test_no_unsafe_calls():
    pattern = re.compile(r"shell=True|\bpickle\.loads?\(|(?<![.\w])eval\(|\bexec\(|torch\.load\((?!.*weights_only=True)|yaml\.load\(")
    unsafe = [f"{f.relative_to(ROOT)}:{n}: {line.strip()}" for f in SOURCES for n, line in enumerate(f.read_text().splitlines(), 1) if pattern.search(line)]
    assert unsafe == []


def test_no_two_test_modules_have_one_name():
    """pytest collects the second of them as an error, and only when both are collected."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
