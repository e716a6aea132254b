"""Generated code passes exactly when it solves the task, and can do nothing else: every escape is tried on the real sandbox."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from gauntlet_examples import GAUNTLET, encoder, needs_gauntlet, scorer

from models.gauntlet import code_evaluation, sandbox, suite, tasks
from models.gauntlet.code_evaluation import judge, pass_at_k
from models.gauntlet.prompts import assemble
from models.gauntlet.tasks import Benchmark, Item, Task

ROW = {
    "task_id": "own/0", "prompt": "def add(a, b):\n    '''The sum.'''\n", "entry_point": "add", "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n", "test_inputs": ["(1, 2)", "(-1, 1,)"],
    "test_outputs": ["3", "0"], "language": "python",
}  # fmt: skip
EXACT, FIXED = (Task(label="code", kind="code_evaluation", category="programming", mode=mode, continuation_delimiter="") for mode in ("exact", "fixed"))
QUICK = sandbox.Limits(wall_seconds=3.0, cpu_seconds=1)


def permitted() -> str:
    try:
        sandbox.run("pass")
    except RuntimeError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(permitted()), reason=f"this machine cannot shut code in: {permitted()}")


def processes() -> set[str]:
    """What runs programs of the sandbox, by command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if b"program.py" in line or b"sandbox.py" in line:
            found.add(entry.name)
    return found


@pytest.mark.parametrize("task", [EXACT, FIXED], ids=["exact", "fixed"])
@pytest.mark.parametrize(
    ("output", "passes", "why"),
    [
        ("    return a + b\n", True, ""),
        ("    return b + a\n\nprint('what comes after the function is cut')\n", True, ""),
        ("    return a - b\n", False, "AssertionError"),
        ("    return a +\n", False, "SyntaxError"),
        ("", False, "AssertionError"),
        ("    import sys; sys.exit(0)\n", False, "ended before its tests were done"),
        ("    import os; os._exit(0)\n", False, "ended before its tests were done"),
        ("    raise SystemExit\n", False, "ended before its tests were done"),
        ("    while True: pass\n", False, "ran out of time|status -9"),
        ("    return [0] * 10**11\n", False, "MemoryError"),
        ("    return '''\n", False, "SyntaxError"),
    ],
)
def test_code_passes_only_when_its_tests_have_run_to_the_end(task, output, passes, why):
    verdict = judge(task, ROW, output, limits=QUICK)
    assert verdict.passed is passes
    assert re.search(why, verdict.reason), verdict.reason
    assert processes() == set()


ESCAPES = {
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
    "network by name": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT', timeout=1)",
    "fork": "import os\nwhile True:\n    os.fork()",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "other program": "import subprocess\nprint(subprocess.run(['/bin/sh', '-c', 'echo', 'out'], capture_output=True))",
    "large file": "with open('big', 'wb') as f:\n    f.write(bytes(1 << 20))\n    f.write(b'x')\n    f.flush()",
    "huge file": "with open('big', 'wb') as f:\n    f.truncate(1 << 30)",
    "disk, file by file": "for i in range(40):\n    with open('f%d' % i, 'wb') as f:\n        f.write(bytes(1 << 20))",
    "files without end": "for i in range(2000):\n    open('f%d' % i, 'w').close()",
    "folders in folders": "import os\nfor i in range(2000):\n    os.mkdir('d')\n    os.chdir('d')",
    "taking its disk away": "import ctypes\nif ctypes.CDLL(None).umount2(b'.', 2): raise OSError('umount2')",
    "many files": "held = [open('f%d' % i, 'w') for i in range(100)]",
    "memory": "held = bytearray(1 << 31)",
    "reading a file": "open(SECRET).read()",
    "listing a folder": "import os\nos.listdir(os.path.dirname(SECRET))",
    "writing beside": "open(SECRET, 'w').write('x')",
    "deleting": "import os\nos.remove(SECRET)",
    "deleting a tree": "import shutil, os\nshutil.rmtree(os.path.dirname(SECRET))",
    "environment of the parent": "open('/proc/PARENT/environ').read()",
    "signal": "import os\nos.kill(PARENT, 9)",
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/', None, 1 << 18, None): raise OSError('mount')",
    "another namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError('unshare')",
    "memory of another": "import ctypes\nif ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) < 0: raise OSError('ptrace')",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds_and_nothing_is_left(name, tmp_path):
    secret = tmp_path / "folder" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        program = ESCAPES[name].replace("PORT", str(server.getsockname()[1])).replace("SECRET", repr(str(secret))).replace("PARENT", str(os.getpid()))
        started = time.monotonic()
        outcome = sandbox.run(program + "\nprint('it worked')\n", limits=QUICK)
        with pytest.raises(BlockingIOError):  # a connection made meanwhile would be waiting in the queue
            server.accept()
    assert outcome.status != 0 and "it worked" not in outcome.output, outcome
    assert time.monotonic() - started < 6
    assert secret.read_text() == "kept" and list(secret.parent.iterdir()) == [secret]
    assert processes() == set()
    assert "moeline-code-" not in Path("/proc/self/mountinfo").read_text()


LOOPS = {
    "disk": "with open('f%d' % n, 'wb') as f: f.write(bytes(1 << 16))",
    "files": "open('f%d' % n, 'w').close()",
    "folders": "os.mkdir('d'); os.chdir('d')",
    "a hidden folder": "os.makedirs('d', exist_ok=True); open('d/f%d' % n, 'wb').write(bytes(1 << 16)); os.chmod('d', 0o300)",
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("missing", ['_call(libc, "mount", b"none"', '_call(libc, "unshare"'], ids=["no mount", "no namespaces"])
def test_where_nothing_can_be_mounted_a_folder_that_grows_ends_its_program(loop, missing, monkeypatch, tmp_path):
    source = Path(sandbox.__file__).read_text()
    broken = source.replace(missing, f'raise _CannotError("not here")\n    {missing}')
    assert broken != source
    (tmp_path / "sandbox.py").write_text(broken)
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    weaker = ["namespaces"] if "unshare" in missing else []
    program = f"import os, time\nfor n in range(100_000):\n    {LOOPS[loop]}\n    time.sleep(0.001)\n"
    outcome = sandbox.run(program, limits=sandbox.Limits(wall_seconds=20.0, cpu_seconds=15), allow_weaker=weaker)
    assert outcome.status == -9 and not outcome.errors, outcome
    assert sandbox.run("print(1)", allow_weaker=weaker).output == "1\n"
    assert "moeline-code-" not in Path("/proc/self/mountinfo").read_text() and processes() == set()


def test_folders_deeper_than_python_can_remove_are_removed(tmp_path):
    (tmp_path / "home").mkdir()
    level = os.open(tmp_path / "home", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=level)
        above, level = level, os.open("d", os.O_RDONLY, dir_fd=level)
        os.close(above)
    os.close(level)
    sandbox._emptied(tmp_path / "home")
    left = (tmp_path / "home").exists()
    subprocess.run(["rm", "-rf", str(tmp_path / "home")], check=True)  # pytest could not remove it either
    assert not left


def test_a_large_program_has_its_whole_disk():
    program = f"text = {'x' * (3 << 20)!r}\nfor n in range(8):\n    open('f%d' % n, 'wb').write(bytes((1 << 20) - 4096))\nprint('fits')\n"
    assert sandbox.run(program).output == "fits\n"


def test_the_program_sees_an_empty_folder_and_no_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "kept")
    outcome = sandbox.run("import os\nprint(sorted(os.listdir('.')), 'A_SECRET' in os.environ, os.getpid() < 10)\nopen('own', 'w').write('x')\n")
    assert outcome.status == 0 and outcome.output == "['program.py'] False True\n", outcome


def test_output_without_end_is_cut_and_a_silent_sleeper_is_ended():
    noisy = sandbox.run("while True: print('x' * 1000)", limits=QUICK)
    assert noisy.status != 0 and len(noisy.output) <= 1 << 16
    started = time.monotonic()
    assert sandbox.run("import time; time.sleep(60)", limits=sandbox.Limits(wall_seconds=0.7)).timed_out and time.monotonic() - started < 4


def test_a_machine_that_cannot_shut_code_in_refuses_unless_told_so(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", str(Path(os.path.realpath(sandbox.sys.executable))))
    broken = Path(sandbox.__file__).read_text().replace('_call(libc, "unshare", sum(_CLONE.values()))', 'raise _CannotError("not permitted here")')
    assert broken != Path(sandbox.__file__).read_text()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(broken)
        file.flush()
        monkeypatch.setattr(sandbox, "__file__", file.name)
        with pytest.raises(RuntimeError, match=r"namespaces: not permitted here.*allow_weaker"):
            sandbox.run("print('ran')")
        assert sandbox.run("print('ran')", allow_weaker=["namespaces"]).output == "ran\n"


@needs_gauntlet
@pytest.mark.parametrize("task", [EXACT, FIXED], ids=["exact", "fixed"])
def test_canonical_solutions_of_humaneval_pass(task):
    rows = [json.loads(line) for line in (GAUNTLET / "local_data/programming/human_eval.jsonl").read_text().splitlines()]
    # Outputs of these nine are strings that Foundry reads as numbers or names ("1" as 1), so that no program can be right.
    broken = {f"HumanEval/{n}" for n in (11, 15, 44, 65, 70, 84, 103, 137, 161)}
    assert len(rows) == 164
    every = 1 if os.environ.get("MOELINE_ALL_OF_HUMANEVAL") else 24
    chosen = rows[::every] + [row for row in rows if row["task_id"] in ("HumanEval/38", "HumanEval/11", "HumanEval/161")]
    failed = {row["task_id"] for row in chosen if not judge(task, row, row["canonical_solution"]).passed}
    assert failed == ({row["task_id"] for row in chosen} & broken if task.mode == "exact" else set())
    assert not any(judge(task, row, "    return None\n").passed for row in rows[:3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"language": "cpp"}, "language .* is 'cpp'; only python"),
        ({"entry_point": "add); import os; (add"}, "no Python name"),
        ({"entry_point": "class"}, "no Python name"),
        ({"test_inputs": ["(1, 2)"]}, "1 test_inputs and 2 test_outputs"),
        ({"test_inputs": ["1)\nimport os\n(", "(1,)"]}, "no Python expression"),
        ({"test_inputs": ["(" * 5000, "(1,)"]}, "no Python expression"),
    ],
)
def test_a_row_that_cannot_be_tested_is_an_error_not_a_wrong_answer(change, says):
    with pytest.raises(ValueError, match=says):
        judge(EXACT, {**ROW, **change}, "    return a + b\n")


def test_injected_outputs_stay_in_the_sandbox_and_pass_nothing():
    row = {**ROW, "test_outputs": ["3)\nimport os\nos._exit(0)\n(", "__import__('os')._exit(0)"]}
    assert not judge(EXACT, row, "    return a + b\n").passed


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample():
    for n, right, k in ((5, 2, 1), (6, 2, 3), (4, 0, 2), (4, 4, 4), (7, 3, 5)):
        draws = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(any(i < right for i in draw) for draw in draws) / len(draws))
    for n, right, k in ((3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(n, right, k)


def code_benchmark(task: Task) -> Benchmark:
    return Benchmark(task, (Item("0", ROW), Item("1", {**ROW, "task_id": "own/1"})))


def test_code_is_asked_as_foundry_asks_it():
    spaced = Task(label="code", kind="code_evaluation", category="programming", num_fewshot=1)
    (first, _) = assemble(code_benchmark(spaced), encoder(), 256)
    assert first.prompt == f"{ROW['prompt']} {ROW['canonical_solution']}\n{ROW['prompt']} "  # nothing is stripped; the delimiter is a space
    assert first.max_new_tokens == len(encoder().encode(ROW["canonical_solution"], False)) + 10
    fixed = Task(label="code", kind="code_evaluation", category="programming", mode="fixed")
    assert next(assemble(code_benchmark(fixed), encoder(), 256)).prompt == ROW["prompt"]


def test_a_model_is_scored_on_code_like_on_any_other_task():
    scores, responses = suite.evaluate([code_benchmark(FIXED)], scorer())
    assert (scores[0].accuracy, scores[0].chance, scores[0].best_constant, scores[0].n, scores[0].metric) == (0.0, 0.0, 0.0, 2, "pass_at_1")
    assert [r.correct for r in responses["code"]] == [False, False] and responses["code"][0].choices == (ROW["canonical_solution"],)


class Knows:
    """A scorer that writes the right code."""

    max_seq_len = 256

    def __init__(self):
        self.encoder = encoder()

    def generate(self, contexts, max_new_tokens, stops):
        return ["    return a + b\n" for _ in contexts]


def test_a_model_that_knows_the_code_scores_one():
    assert [r.correct for r in code_evaluation.score(code_benchmark(FIXED), Knows())] == [True, True]


def test_a_code_task_is_read_from_yaml(tmp_path):
    (tmp_path / "code.jsonl").write_text(json.dumps(ROW) + "\n")
    task = {"label": "human_eval", "dataset_uri": "code.jsonl", "num_fewshot": [0], "icl_task_type": "code_evaluation", "pass_at_k": 1}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    (loaded,) = tasks.load_foundry(tmp_path / "tasks.yaml", tmp_path)
    assert loaded.task.kind == "code_evaluation" and loaded.items[0].row == ROW
