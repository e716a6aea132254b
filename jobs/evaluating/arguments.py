"""The options of ``moeline evaluate``. Standard library only, so that ``moeline --help`` stays quick."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError

ABOUT = "Score a model folder, or a served model, on Foundry's task files; resumes after a kill, and asks nothing twice. Needs no platform."


def add_to(found: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    found.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="Hugging Face causal LM folder, our export or checkpoint, http(s)://.../v1, or a registered NAME/VERSION",
    )
    found.add_argument("--suite", required=True, metavar="YAML", help="tasks or gauntlet YAML, or its name in DATA/yamls, such as v0.3")
    found.add_argument("--data", required=True, metavar="DIR", help="folder with local_data/ in Foundry's layout")
    found.add_argument("--out", required=True, metavar="DIR", help="scores.json, responses.parquet, report.md and the journal; the same again goes on")
    found.add_argument("--tasks", default="", metavar="A,B", help="only these; v0.3-local: the 26 small ones")
    found.add_argument("--max-items", type=int, metavar="N", help="at most N items of every task (a partial result, and called so)")
    found.add_argument("--mode", choices=("exact", "fixed"), default="exact", help="exact: Foundry's numbers, defects included (default)")
    found.add_argument("--batch-tokens", type=int, default=16_384, metavar="N", help="token positions of a forward pass; memory, not results")
    found.add_argument(
        "--workers", type=int, default=1, metavar="N", help="Ray workers that share the items, on the platform's Ray or a local one (default: 1)"
    )
    found.add_argument("--max-seq-len", type=int, metavar="N", help="longest sequence (default: the model's, at most 2048 as in Foundry's scores)")
    found.add_argument("--tokenizer", metavar="PATH", help="tokenizer folder or tokenizer.json, where the model folder has none")
    found.add_argument("--lm-eval-include", metavar="DIR", help="more task files for a suite's lm_eval_task entries; Python in them is run")
    found.add_argument("--no-cache", action="store_true", help="neither use nor keep answers in the moeline home (the journal in --out is used)")
    found.add_argument("--served-model", default="", metavar="NAME", help="model name at the URL (default: the first it lists)")
    found.add_argument(
        "--reuse-answers", action="store_true", help="take a served model's answers from finished runs in --out as well (default: only a killed run goes on, "
        "since nobody can see whether the weights at the URL have changed)"
    )  # fmt: skip
    found.add_argument("--key-env", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the URL's key (default: OPENAI_API_KEY)")


def evaluate(arguments: argparse.Namespace, env: Any, *, echo: Callable[[str], None]) -> dict[str, Any]:
    """Run the command; prints the report where no JSON is asked for."""
    with _folder(arguments.model, env) as model:
        return _evaluate(arguments, env, model, echo)


@contextmanager
def _folder(asked: str, env: Any) -> Iterator[str]:
    """A registered version as a checked folder, for as long as it is evaluated; anything else as it is."""
    from jobs import model_command, registered

    try:
        named = None if Path(asked).exists() else model_command.parse(asked)
    except MoelineError:
        named = None
    if named is None:
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="moeline-model-") as private:  # 0700
        folder = Path(private) / "-".join(named)
        registered.export(env, *named, folder)
        yield str(folder)


def _evaluate(arguments: argparse.Namespace, env: Any, model: str, echo: Callable[[str], None]) -> dict[str, Any]:
    from jobs.environment import Resources
    from jobs.evaluating import command, writing

    def connect() -> AbstractContextManager[None]:
        import torch

        from jobs.services import ray_connection

        return ray_connection.connected(env, Resources(cores=arguments.workers, memory_gib=0.0, gpus=torch.cuda.device_count()))

    options = command.Options(
        model=model, suite=arguments.suite, data=Path(arguments.data), out=Path(arguments.out),
        tasks=tuple(t.strip() for t in arguments.tasks.split(",") if t.strip()), max_items=arguments.max_items, mode=arguments.mode,
        batch_tokens=arguments.batch_tokens, workers=arguments.workers, max_seq_len=arguments.max_seq_len,
        tokenizer=Path(arguments.tokenizer) if arguments.tokenizer else None,
        served_model=arguments.served_model, key_variable=arguments.key_env, reuse_answers=arguments.reuse_answers,
        lm_eval_include=Path(arguments.lm_eval_include) if arguments.lm_eval_include else None,
    )  # fmt: skip
    result = command.run(
        options, cache_folder=None if arguments.no_cache else env.home / "evaluations", tokenizers=env.artifacts / "tokenizers", home=env.home, echo=echo,
        connect=connect,
    )  # fmt: skip
    if not arguments.json:
        print((options.out / writing.REPORT).read_text(), end="")
    return result
