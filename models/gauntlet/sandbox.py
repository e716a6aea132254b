"""Runs a Python program nobody has read: no network, no other process, no file outside its own empty folder, and bounded in everything.

    outcome = sandbox.run(program_text, stdin="...", limits=Limits(wall_seconds=5))

This file is also the launcher: started as a script (with ``python -I -S``), it shuts itself in and then becomes the program. What it
relies on is Linux: user, network, process and mount namespaces (unshare), Landlock for files, seccomp against new processes and sockets,
and resource limits. Its folder is a file system in memory of a limited size; where such a one cannot be mounted, the folder is measured all
the time and the program ended when it has become too large (some megabytes late). Where the kernel does not permit one of the others, ``run``
refuses; ``allow_weaker`` says which are done without, and then the program is kept in by the remaining ones only. It is not a virtual machine:
a hole in the kernel is a hole in this.
Change here: what a program may do. Not here: which programs are run (code_evaluation.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_CLONE = {"user": 0x10000000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000, "mount": 0x00020000}
_NOBODY = 65534  # in its own user namespace: not 0, or the program would have the rights of that namespace's root
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_MOST_ENTRIES, _DEEPEST, _MEASURED_EVERY = 256, 32, 0.02  # files and folders; levels; seconds
_SPARE_BYTES = 1 << 16  # what files take more than their bytes
_REFUSED = 97  # exit status of a launcher that could not shut itself in
_OUTPUT_BYTES = 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
# System calls a program has no need of, by machine: they make processes, sockets, or reach into other processes.
_FORBIDDEN = {
    "x86_64": (0xC000003E, (56, 57, 58, 435, 41, 53, 101, 310, 311, 62, 200, 234, 424, 434, 250, 321, 165, 272, 308, 425)),
    "aarch64": (0xC00000B7, (220, 435, 198, 199, 117, 270, 271, 129, 130, 131, 424, 434, 219, 280, 40, 97, 268, 425)),
}
WALLS = ("namespaces", "files", "processes")


@dataclass(frozen=True)
class Limits:
    """Seconds of wall clock and of processor, bytes of address space, of the largest file, of all files together; open files."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 8
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    disk_bytes: int = 8 << 20
    open_files: int = 32


@dataclass(frozen=True)
class Outcome:
    """``status``: exit code, or minus the signal that ended it; None when the wall clock did. Output is what was written, cut to 64 KiB."""

    status: int | None
    output: str
    errors: str

    @property
    def timed_out(self) -> bool:
        return self.status is None


def run(program: str, *, stdin: str = "", limits: Limits | None = None, allow_weaker: Sequence[str] = ()) -> Outcome:
    """Run ``program`` to its end or a limit; nothing of it is running or on disk afterwards.

    ``allow_weaker``: names of WALLS that may be missing. RuntimeError when one that is not named cannot be raised on this machine.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="moeline-code-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        (Path(folder) / "stdin").write_text(stdin, encoding="utf-8")
        settings = json.dumps({**asdict(limits), "home": str(home), "allow_weaker": list(allow_weaker)})
        outputs = [Path(folder) / "stdout", Path(folder) / "stderr"]
        with outputs[0].open("wb") as out, outputs[1].open("wb") as err, (Path(folder) / "stdin").open("rb") as given:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", __file__, settings], stdin=given, stdout=out, stderr=err, cwd=home, env={}, start_new_session=True
            )
            try:
                status = _watched(process, home, limits)
            finally:
                _end(process)
                _emptied(home)
        texts = [file.read_bytes()[:_OUTPUT_BYTES].decode("utf-8", errors="replace") for file in outputs]
    if status == _REFUSED and texts[1].startswith("sandbox: "):
        raise RuntimeError(
            f"{texts[1].strip()} Generated code is not run without it. Run on a machine that permits it, or name the wall in allow_weaker "
            f"({', '.join(WALLS)}) if the machine is one that may be lost."
        )
    return Outcome(status, *texts)


def _watched(process: subprocess.Popen[bytes], home: Path, limits: Limits) -> int | None:
    """Its status at its end; None when its time is up. A program whose folder has become too large is ended."""
    until, allowed = time.monotonic() + limits.wall_seconds, limits.disk_bytes + (home / "program.py").stat().st_size + _SPARE_BYTES
    while (left := until - time.monotonic()) > 0:
        try:
            return process.wait(min(left, _MEASURED_EVERY))
        except subprocess.TimeoutExpired:
            if not _fits(home, allowed):
                return -signal.SIGKILL
    return None


def _fits(home: Path, allowed: int) -> bool:
    """Whether a folder holds no more than is allowed. What cannot be looked into does not fit. A file system mounted inside is empty from here."""
    waiting, entries, size = [(str(home), 0)], 0, 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    about, entries = entry.stat(follow_symlinks=False), entries + 1
                    size += about.st_blocks * 512
                    if entries > _MOST_ENTRIES or size > allowed or depth > _DEEPEST:
                        return False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, depth + 1))
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError:
            return False
    return True


def _emptied(home: Path) -> None:
    """Remove a folder of any depth: Python's own way needs a frame and a descriptor for every level."""
    try:
        shutil.rmtree(home)
    except (OSError, RecursionError):
        subprocess.run(["rm", "-rf", "--", str(home)], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group. Its first process takes the others with it (a process namespace ends with its first process)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _CannotError(Exception):
    """A wall that this machine does not permit."""


def _call(libc: ctypes.CDLL, name: str, *arguments: object) -> int:
    result = getattr(libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise _CannotError(f"{name} failed: {os.strerror(number)}")
    return result


def _namespaces(libc: ctypes.CDLL) -> None:
    """A user of no rights outside, no network but a dead loopback, mounts and processes of its own: the caller's child is the first."""
    user, group = os.getuid(), os.getgid()
    _call(libc, "unshare", sum(_CLONE.values()))
    with contextlib.suppress(OSError):  # without, it is nobody all the same, and only cannot mount
        for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {user} 1"), ("gid_map", f"{_NOBODY} {group} 1")):
            Path("/proc/self", name).write_text(text)


def _own_disk(libc: ctypes.CDLL, home: str, disk_bytes: int) -> None:
    """A file system of ``disk_bytes`` in memory at ``home``, with the program in it; it ends with the process namespace."""
    program = Path(home, "program.py").read_bytes()
    _call(libc, "mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)  # nothing mounted here is seen outside
    settings = f"size={disk_bytes + len(program) + _SPARE_BYTES},nr_inodes={_MOST_ENTRIES},mode=0700".encode()
    _call(libc, "mount", b"tmpfs", os.fsencode(home), b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC), settings)
    Path(home, "program.py").write_bytes(program)
    os.chdir(home)  # until now the folder below the mount


def _files(libc: ctypes.CDLL, home: str) -> None:
    """Landlock: reading only below the interpreter and the system's libraries, everything else only below ``home``."""
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        raise _CannotError("Landlock is not in this kernel")
    everything = (1 << (13 if abi == 1 else 14 if abi == 2 else 15)) - 1
    ruleset = _call(libc, "syscall", 444, ctypes.create_string_buffer(struct.pack("<Q", everything)), ctypes.c_size_t(8), 0)
    readable = {sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"}
    folders = ((path, 0b1101 if os.path.isdir(path) else 0b0101) for path in readable)  # 1 execute, 2 write, 4 read a file, 8 list a folder
    for path, rights in (*folders, ("/dev/null", 0b0110), ("/dev/urandom", 0b0100), (home, everything & ~1)):
        if not os.path.exists(path):
            continue
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, descriptor))
        _call(libc, "syscall", 445, ruleset, 1, rule, 0)
        os.close(descriptor)
    _call(libc, "syscall", 446, ruleset, 0)


def _processes(libc: ctypes.CDLL) -> None:
    """seccomp: the forbidden system calls answer "not permitted"; a call of another machine's kind ends the program."""
    if platform.machine() not in _FORBIDDEN:
        raise _CannotError(f"no list of system calls for {platform.machine()}")
    machine, calls = _FORBIDDEN[platform.machine()]
    step = struct.Struct("<HBBI")  # code, jump if true, jump if false, value
    steps = [step.pack(0x20, 0, 0, 4), step.pack(0x15, 1, 0, machine), step.pack(0x06, 0, 0, 0x80000000), step.pack(0x20, 0, 0, 0)]
    if platform.machine() == "x86_64":
        steps += [step.pack(0x35, 0, 1, 0x40000000), step.pack(0x06, 0, 0, 0x80000000)]  # the x32 names of the same calls
    for call in calls:
        steps += [step.pack(0x15, 0, 1, call), step.pack(0x06, 0, 0, 0x00050000 | 1)]
    steps.append(step.pack(0x06, 0, 0, 0x7FFF0000))
    text = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(text)))
    _call(libc, "prctl", _PR_SET_SECCOMP, 2, program, 0, 0)


def _limit(settings: dict[str, object]) -> None:
    for name, value in (
        ("CPU", settings["cpu_seconds"]), ("AS", settings["memory_bytes"]), ("FSIZE", settings["file_bytes"]), ("NPROC", 1),
        ("NOFILE", settings["open_files"]), ("CORE", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def main(settings: dict[str, object]) -> int:
    """The launcher: raise the walls, become the program. The process namespace starts with a child, for which the launcher waits."""
    libc = ctypes.CDLL(None, use_errno=True)
    weaker = settings["allow_weaker"]
    assert isinstance(weaker, list)  # noqa: S101 - run wrote it

    def refuse(name: str, error: Exception) -> None:
        sys.stderr.write(f"sandbox: {name}: {error}.\n")
        sys.stderr.flush()
        os._exit(_REFUSED)

    def wall(name: str, raise_it: object, *arguments: object) -> bool:
        try:
            raise_it(libc, *arguments)  # type: ignore[operator]
        except _CannotError as error:
            if name not in weaker:
                refuse(name, error)
            return False
        return True

    if wall("namespaces", _namespaces):  # else a mount would be everybody's
        try:
            _own_disk(libc, str(settings["home"]), int(str(settings["disk_bytes"])))
        except _CannotError:
            pass  # some machines let no user mount: there the folder is measured from outside
        except OSError as error:  # mounted, but the program is not on it
            refuse("disk", error)
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(settings)
    wall("files", _files, settings["home"])
    wall("processes", _processes)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-B", "program.py"], {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"})  # noqa: S606
    return _REFUSED


if __name__ == "__main__":
    _code = main(json.loads(sys.argv[1]))
    if _code < 0:
        os.kill(os.getpid(), signal.SIGKILL)  # ended by a signal, whichever: so does the launcher
    sys.exit(_code)
