"""Real worker processes for the tests of models/parallel: ``together(...)`` starts them, this file run as a program is one of them.

A worker is a fresh interpreter (never a fork) in a gloo group that meets in a file. It does ``task`` and writes what it returns as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
TIMEOUT = 240.0


def together(logs: Path, workers: int, task: str, **arguments: Any) -> list[Any]:
    """What ``task`` (a function of tests/parallel/tasks.py) returned in each of ``workers`` processes. One that fails ends all."""
    logs.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": f"{REPO}:{Path(__file__).parent}:{REPO / 'tests'}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    call = json.dumps({"task": task, "workers": workers, "folder": str(logs), "arguments": arguments}, default=str)
    written = [(logs / f"{task}-{rank}.log").open("w") for rank in range(workers)]
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), call], env=env, cwd=REPO, stdout=log, stderr=subprocess.STDOUT)
        for rank, log in enumerate(written)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=TIMEOUT) for process in processes]
    finally:
        for process, log in zip(processes, written, strict=True):
            process.kill()
            log.close()
    for rank, code in enumerate(codes):
        assert code == 0, f"worker {rank}: {(logs / f'{task}-{rank}.log').read_text()[-4000:]}"
    return [json.loads((logs / f"{task}-{rank}.json").read_text()) for rank in range(workers)]


def main() -> None:
    import tasks
    import torch
    import torch.distributed as dist

    rank, call = int(sys.argv[1]), json.loads(sys.argv[2])
    folder = Path(call["folder"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / call['task']}.meet", rank=rank, world_size=call["workers"])
    found = getattr(tasks, call["task"])(**call["arguments"])
    (folder / f"{call['task']}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
