"""Our folders are transformers' DBRX and theirs are ours: same logits, both thetas, tokenizer, shards."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jobs.environment import REPO
from models import huggingface
from models.config import ModelConfig
from models.train_loop import new_model

# d_model differs from ffn_hidden and theta from 10000: equal sizes hid transformers' bugs before.
CONFIG = ModelConfig(d_model=48, n_heads=6, n_kv_heads=2, n_layers=2, ffn_hidden=40, vocab_size=300, max_seq_len=64, init_std=0.15, clip_qkv=0.8)


@pytest.fixture(scope="module")
def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>", "<|padding|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def f(x): return x + 1", "class A: pass"] * 20, trainer)
    return tokenizer.to_str().encode()


def tokens() -> torch.Tensor:
    return torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(0))


def theirs(directory: Path) -> torch.Tensor:
    from transformers import DbrxForCausalLM

    model = DbrxForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(tokens()).logits


def ours(directory: Path) -> torch.Tensor:
    model, _ = huggingface.load(directory, experts_backend="reference")  # the backend with float64
    with torch.no_grad():
        return model.double()(tokens()).logits_BTV


def test_transformers_computes_our_logits_from_our_folder(tmp_path: Path) -> None:
    model = new_model(CONFIG, seed=1)
    huggingface.export(model, CONFIG, tmp_path, None)
    with torch.no_grad():
        expected = new_model(CONFIG, seed=1, experts_backend="reference").double()(tokens()).logits_BTV
    assert expected.std() > 0.3
    torch.testing.assert_close(theirs(tmp_path), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours(tmp_path), expected, rtol=0, atol=1e-12)


def test_we_compute_transformers_logits_from_its_folder(tmp_path: Path) -> None:
    from transformers import DbrxConfig, DbrxForCausalLM

    torch.manual_seed(5)
    config = DbrxConfig(
        d_model=48, n_heads=6, n_layers=2, max_seq_len=64, vocab_size=300, initializer_range=0.15, rope_theta=500_000.0,
        attn_config={"clip_qkv": 0.8, "kv_n_heads": 2, "rope_theta": 500_000.0}, ffn_config={"ffn_hidden_size": 40, "moe_num_experts": 8, "moe_top_k": 3},
    )  # fmt: skip
    DbrxForCausalLM(config).save_pretrained(tmp_path)
    read = huggingface.read_config(tmp_path)
    assert (read.d_model, read.n_kv_heads, read.ffn_hidden, read.n_experts, read.top_k, read.rope_theta) == (48, 2, 40, 8, 3, 500_000.0)
    torch.testing.assert_close(ours(tmp_path), theirs(tmp_path), rtol=0, atol=1e-6)


def test_transformers_computes_the_logits_of_a_dense_twin(tmp_path: Path) -> None:
    config = replace(CONFIG, n_experts=1, top_k=1, ffn_hidden=4 * CONFIG.ffn_hidden, moe_loss_weight=0.0)
    model = new_model(config, seed=4)
    huggingface.export(model, config, tmp_path, None)
    with torch.no_grad():  # one expert is a plain product whatever the backend, so float64 is no problem for the default one
        torch.testing.assert_close(model.double()(tokens()).logits_BTV, theirs(tmp_path), rtol=0, atol=1e-6)


def test_rope_theta_is_written_in_both_places_and_transformers_uses_it(tmp_path: Path) -> None:
    from transformers import AutoConfig

    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_theta"] == raw["attn_config"]["rope_theta"] == 500_000.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500_000.0
    before = theirs(tmp_path)
    del raw["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert (theirs(tmp_path) - before).abs().max() > 1e-3  # the trap is still there: the nested one alone is ignored


def test_disagreeing_thetas_are_an_error(tmp_path: Path) -> None:
    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None)
    raw = json.loads((tmp_path / "config.json").read_text()) | {"rope_theta": 10_000.0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="different rotary bases"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"clip_qkv": math.inf, "rope_theta": 10_000.0, "top_k": 1, "moe_loss_weight": 0.01},
        {"n_experts": 1, "top_k": 1, "moe_loss_weight": 0.0},  # a dense twin
    ],
)
def test_config_and_weights_survive_export_and_load(tmp_path: Path, change: dict) -> None:
    config = replace(CONFIG, **change)
    model = new_model(config, seed=2)
    huggingface.export(model, config, tmp_path, None)
    loaded, read = huggingface.load(tmp_path)
    assert read == config and not loaded.training
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_shards_hold_the_same_model_and_a_second_export_replaces_them(tmp_path: Path) -> None:
    model = new_model(CONFIG, seed=3)
    huggingface.export(model, CONFIG, tmp_path, None, max_shard_bytes=200_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("*.safetensors"))) > 2
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    sharded = theirs(tmp_path)
    torch.testing.assert_close(ours(tmp_path), sharded, rtol=0, atol=1e-6)
    huggingface.export(model, CONFIG, tmp_path, None)
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]
    assert torch.equal(theirs(tmp_path), sharded)


def test_the_tokenizer_loads_offline_and_round_trips(tmp_path: Path, tokenizer_json: bytes) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, tokenizer_json, eos_id=0, pad_id=1)
    expected = Tokenizer.from_str(tokenizer_json.decode())
    text = "def ü(x):\n    return x  # 日本"
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0, "<|padding|>", 1)
        assert tokenizer(text)["input_ids"] == expected.encode(text).ids and tokenizer.decode(expected.encode(text).ids) == text
        assert tokenizer.model_max_length == 64
    with pytest.raises(ValueError, match="pad_id 9999"):
        huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, tokenizer_json, pad_id=9999)


def test_transformers_generates_from_our_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None, eos_id=0, pad_id=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape[1] <= 7


OLD = REPO / ".oracles" / "transformers-4"


@pytest.mark.skipif(not (OLD / ".pinned").is_file(), reason=f"no transformers 4.57 in {OLD}: make test puts it there")
@pytest.mark.parametrize("change", [{}, {"n_experts": 1, "top_k": 1, "moe_loss_weight": 0.0}], ids=["experts", "dense"])
def test_transformers_4_and_we_load_each_others_folders(tmp_path: Path, change: dict) -> None:
    """In a process of its own: two versions cannot be imported into one."""

    def old(*arguments: object) -> None:
        command = [sys.executable, str(REPO / "tests" / "oracles" / "dbrx_logits.py"), *map(str, arguments)]
        done = subprocess.run(
            command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(OLD)}, timeout=300, capture_output=True, text=True
        )
        assert done.stdout.startswith("transformers 4.57."), "it is the older one that answered"

    ours_file, theirs_folder = tmp_path / "ours.safetensors", tmp_path / "theirs"
    save_file({"tokens": tokens()}, tmp_path / "tokens.safetensors")
    config = replace(CONFIG, **change)
    huggingface.export(new_model(config, seed=1), config, tmp_path / "ours", None, max_shard_bytes=200_000)
    old("logits", tmp_path / "ours", tmp_path / "tokens.safetensors", ours_file)
    torch.testing.assert_close(ours(tmp_path / "ours"), load_file(ours_file)["logits"], rtol=0, atol=1e-6)
    old("write", theirs_folder)
    old("logits", theirs_folder, tmp_path / "tokens.safetensors", tmp_path / "theirs.safetensors")
    assert huggingface.read_config(theirs_folder).rope_theta == 500_000.0
    torch.testing.assert_close(ours(theirs_folder), load_file(tmp_path / "theirs.safetensors")["logits"], rtol=0, atol=1e-6)


def test_a_folder_is_written_and_read_a_file_at_a_time(tmp_path: Path) -> None:
    """Peak memory of a process that exports a model and one that loads it: the model and little more, however many files there are."""
    program = """
import resource, sys, pathlib, torch
from jobs.environment import REPO
from models import huggingface
from models.config import ModelConfig
from models.train_loop import new_model
directory, what = pathlib.Path(sys.argv[1]), sys.argv[2]
config = ModelConfig(d_model=256, n_heads=4, n_kv_heads=2, n_layers=6, ffn_hidden=1024, vocab_size=1024, max_seq_len=64)
model = new_model(config, seed=1).bfloat16() if what == "export" else None
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if what == "export":
    huggingface.export(model, config, directory, None, max_shard_bytes=20_000_000)
else:
    import safetensors.torch
    before = peak()
    model, _ = huggingface.load(directory)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""
    grown = {}
    for what in ("export", "load"):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), what], check=True, capture_output=True, text=True, timeout=300)
        grown[what] = float(done.stdout)
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    assert grown["export"] < 0.6 and grown["load"] < 1.3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model-00002-of-00003.safetensors", None, "has no model-00002-of-00003"),
        ("model-00002-of-00003.safetensors", b"", "not a whole safetensors file"),
        ("model-00002-of-00003.safetensors", "half", "not a whole safetensors file"),
        ("model-00002-of-00003.safetensors", "twice", "in two files"),
        ("model.safetensors.index.json", b"{", "no index of weights"),
        ("model.safetensors.index.json", b'{"weight_map": ["a"]}', "no index of weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../secret.safetensors"}}', "has no ../../secret"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "has no 3"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model-00001-of-00003.safetensors"}}', "missing, unknown or of another shape"),
        ("config.json", b"[1]", "only 'dbrx'"),
        ("config.json", b'{"model_type": "dbrx", "attn_config": 3}', "must be objects"),
        ("config.json", b'{"model_type": "dbrx", "ffn_config": {"ffn_act_fn": "gelu"}}', "'gelu'"),
        ("config.json", "n_heads", "sizes that cannot be"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path: Path, file: str, content: bytes | str | None, message: str) -> None:
    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None, max_shard_bytes=400_000)
    assert (tmp_path / "model-00003-of-00003.safetensors").is_file()
    damaged = tmp_path / file
    if content is None:
        damaged.unlink()
    elif content == "half":
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    elif content == "twice":
        damaged.write_bytes((tmp_path / "model-00001-of-00003.safetensors").read_bytes())
    elif content == "n_heads":
        damaged.write_text(json.dumps(json.loads(damaged.read_text()) | {"n_heads": "6"}))
    else:
        damaged.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        huggingface.load(tmp_path)


def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    model = new_model(CONFIG, seed=1)
    huggingface.export(model, CONFIG, tmp_path, None)
    save_file({name: weight.to(torch.int8) for name, weight in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="type I8"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "only 'dbrx'"),
        ({"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "'gelu'"),
        ({"attn_config": {}}, "kv_n_heads"),
        ({"d_model": 96}, "another shape"),
    ],
)
def test_what_cannot_be_represented_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None)
    raw = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    huggingface.export(new_model(CONFIG, seed=1), CONFIG, tmp_path, None)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        huggingface.load(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        huggingface.load(tmp_path / "nowhere")
