"""Every lock file holds exact pins with sha256 and nothing else; what is otherwise is refused with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from infra.supply import locks
from infra.supply.parts import delta_jars
from jobs.contract import MoelineError
from jobs.services import jars

ROOT = Path(__file__).resolve().parent.parent.parent
DIGEST = "ab" * 32
GOOD = f"numpy==2.4.6 \\\n    --hash=sha256:{DIGEST}\n    # via moeline (pyproject.toml)\n"


def lock(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.lock"
    path.write_text(text)
    return path


def test_every_lock_file_of_the_repository_is_known():
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.lock") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)}
    assert found == set(locks.LOCKS)


@pytest.mark.parametrize("name", locks.LOCKS)
def test_every_requirement_is_an_exact_pin_with_sha256(name):
    pins = locks.read_lock(ROOT / name)
    lines = (ROOT / name).read_text().splitlines()
    assert len(pins) == sum("==" in line and not line.lstrip().startswith("#") for line in lines)
    assert sum(len(pin.sha256) for pin in pins) == sum("--hash=" in line for line in lines)
    assert all(len(digest) == 64 for pin in pins for digest in pin.sha256)
    # Written in pieces: a lock may hold no address, in a comment neither.
    assert not [line for line in lines if ":/" + "/" in line or "git" + "+" in line or "--index" in line.split("#")[0]]


def test_the_lock_meets_every_requirement_of_the_project():
    pins = locks.read_lock(ROOT / locks.MAIN)
    assert locks.unlocked(pins) == []
    assert set(locks.uses(pins)) == {pin.name for pin in pins}


def test_a_lock_older_than_the_project_is_found(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["numpy==2.5.0", "Absent_Package", "pyyaml"]\n[project.optional-dependencies]\ntest = ["x @ file:///x.whl"]\n'
    )
    pins = [locks.Pin("numpy", "2.4.6", (DIGEST,)), locks.Pin("pyyaml", "6.0.3", (DIGEST,)), locks.Pin("x", "1", (DIGEST,))]
    assert locks.unlocked(pins, project) == ["numpy==2.5.0", "Absent_Package", "x @ file:///x.whl"]


def test_a_good_lock_is_read_whole(tmp_path):
    more = (
        f"My_Lib==1.0.post1+cpu \\\n    --hash=sha256:{DIGEST} \\\n    --hash=sha256:{'cd' * 32}\n    # via\n    #   moeline (pyproject.toml)\n    #   numpy\n"
    )
    pins = locks.read_lock(lock(tmp_path, f"# a comment\n\n{GOOD}{more}"))
    assert pins == [
        locks.Pin("numpy", "2.4.6", (DIGEST,), (), True),
        locks.Pin("my-lib", "1.0.post1+cpu", (DIGEST, "cd" * 32), ("numpy",), True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "numpy==2.4.6\n",
        "numpy==2.4.6 \\\n",
        "numpy==2.4.6 \\\n    # via x\n",
        f"numpy>=2.4 \\\n    --hash=sha256:{DIGEST}\n",
        f"numpy==2.* \\\n    --hash=sha256:{DIGEST}\n",
        f"numpy==latest \\\n    --hash=sha256:{DIGEST}\n",
        f"numpy==2.4.6,<3 \\\n    --hash=sha256:{DIGEST}\n",
        f"numpy==2.4.6 \\\n    --hash=sha256:{DIGEST[:-1]}\n",
        f"numpy==2.4.6 \\\n    --hash=md5:{DIGEST[:32]}\n",
        f"numpy @ https:/{'/'}example.com/numpy.whl \\\n    --hash=sha256:{DIGEST}\n",
        f"git+https:/{'/'}example.com/numpy.git \\\n    --hash=sha256:{DIGEST}\n",
        "-e .\n",
        "./numpy.whl\n",
        f"--index-url https:/{'/'}example.com/simple\n{GOOD}",
        "--extra-index-url x\n",
        "-r other.txt\n",
        f"numpy==2.4.6 ; sys_platform == 'linux' \\\n    --hash=sha256:{DIGEST}\n",
        f"{GOOD}    --hash=sha256:{DIGEST}\n",
        "    # via x\n",
        f"{GOOD}{GOOD}",
        f"{GOOD}NumPy==2.4.5 \\\n    --hash=sha256:{DIGEST}\n",
        "# nothing\n",
        "",
    ],
)
def test_what_is_no_hashed_exact_pin_is_refused(tmp_path, text):
    with pytest.raises(MoelineError, match=r"some\.lock"):
        locks.read_lock(lock(tmp_path, text))


def test_a_use_is_the_first_root_that_reaches_a_pin(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["a"]\n[project.optional-dependencies]\nmore = ["b"]\ntest = ["c", "a"]\n')
    via = {"a": (), "b": (), "c": (), "shared": ("a", "c"), "deep": ("shared",), "circle": ("deep", "circle"), "of-b": ("b", "c"), "of-c": ("c",), "lost": ()}
    pins = [locks.Pin(name, "1", (DIGEST,), askers) for name, askers in via.items()]
    assert locks.uses(pins, project) == {
        "a": "runtime", "shared": "runtime", "deep": "runtime", "circle": "runtime", "b": "extra more", "of-b": "extra more", "c": "tests", "of-c": "tests",
    }  # fmt: skip


def test_what_the_stages_import_is_no_test_dependency():
    used = locks.uses(locks.read_lock(ROOT / locks.MAIN))
    assert {used[name] for name in ("pyspark", "torch", "ray", "mlflow", "apache-airflow")} == {"runtime"}
    assert used["lm-eval"] == "extra lm-eval" and used["pytest"] == "tests" and used["cyclonedx-python-lib"] == "tests"
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]) == {"kubernetes", "lm-eval", "test"}


def test_every_jar_has_a_sha256_and_the_lists_agree(tmp_path):
    parts = delta_jars()
    assert {(part.purl.namespace, part.purl.name, part.version, part.sha256) for part in parts} == {
        (*name.removesuffix(f"-{name.rsplit('-', 1)[1]}").split("_", 1), name.rsplit("-", 1)[1].removesuffix(".jar"), (digest,))
        for name, digest in jars.expected().items()
    }
    assert all(len(part.sha256[0]) == 64 for part in parts)
    listed = jars.expected()
    first = next(iter(listed))
    with pytest.raises(MoelineError, match="has no sha256"):
        delta_jars({name: digest for name, digest in listed.items() if name != first})
    with pytest.raises(MoelineError, match=r"stray-1\.jar has a sha256 and is not in"):
        delta_jars({**listed, "stray-1.jar": DIGEST})
