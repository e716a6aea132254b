"""Real text and small real models for the gauntlet tests: modules of the standard library, a BPE trained on them, untrained weights."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
from pathlib import Path

import pytest

GAUNTLET = Path(__file__).resolve().parents[3] / "shared" / "gauntlet"
needs_gauntlet = pytest.mark.skipif(not GAUNTLET.is_dir(), reason=f"needs Foundry's data in {GAUNTLET}")
MODULES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "csv", "dataclasses", "difflib", "doctest", "enum", "fractions", "ftplib", "gettext",
    "gzip", "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "optparse", "pathlib", "pdb", "pickle", "pprint", "queue", "random", "shelve",
    "shlex", "shutil", "smtplib", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "trace", "typing", "zipfile",
)  # fmt: skip


@functools.cache
def documents() -> tuple[tuple[str, str, str], ...]:
    """(doc_id, source, text): modules of the standard library as code, their long docstrings as docs."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in MODULES:
        file = library / f"{name}.py"
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            found.append(("python-code", text))
            found += [("python-docs", inspect.cleandoc(part)) for part in text.split('"""')[1::2] if len(part) > 400]
    return tuple((hashlib.sha256(text.encode()).hexdigest()[:32], source, text) for source, text in found)


@functools.cache
def tokenizer_json() -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((text for _, _, text in documents()[:12]), trainer)
    return tokenizer.to_str().encode()


@functools.cache
def encoder():
    from models.gauntlet.prompts import TokenizersEncoder

    return TokenizersEncoder.from_bytes(tokenizer_json())


@functools.cache
def model(max_seq_len: int = 256, init_std: float = 0.2):
    """An untrained mixture of experts whose log-probabilities differ clearly between tokens."""
    import torch

    from models.config import ModelConfig
    from models.transformer import Transformer

    torch.manual_seed(7)
    config = ModelConfig(
        d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=16, vocab_size=1024, max_seq_len=max_seq_len, n_experts=4, top_k=2, init_std=init_std
    )
    return Transformer(config).eval()


def scorer(*, batch_tokens: int = 4096, shared_prefix: bool = True, max_seq_len: int = 256):
    from models.gauntlet.scoring import Scorer
    from models.kv_cache import KVCache

    cache = KVCache if shared_prefix else None
    return Scorer(model(max_seq_len), encoder(), max_seq_len=max_seq_len, batch_tokens=batch_tokens, cache_type=cache)
