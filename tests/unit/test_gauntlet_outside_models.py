"""Models from outside score as their own forward pass says, whatever their head does to the logits; folders that are no models are refused."""

from __future__ import annotations

import json

import outside_folders
import pytest
import torch
from gauntlet_examples import documents

from models.gauntlet import outside_models
from models.gauntlet.prompts import TransformersEncoder
from models.gauntlet.scoring import Scorer


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return outside_folders.write(tmp_path_factory.mktemp("llama"))


def pairs(encoder):
    """Contexts of different lengths, so that rows are padded, each with continuations of different lengths."""
    texts = [text for _, _, text in documents()[:4]]
    return [
        (tuple(encoder.encode(text[:n], False)), tuple(encoder.encode(text[n : n + m], False)))
        for text, n in zip(texts, (30, 90, 160, 60), strict=True)
        for m in (3, 25)
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "mixtral", "gemma2", "cohere", "granite", "opt", "bloom", "gpt_neo"])
def test_log_probabilities_are_those_of_the_models_own_forward_pass(name, tmp_path):
    import transformers

    folder = outside_folders.write(tmp_path, name)
    model, tokenizer = outside_models.load(folder)
    assert model.splits
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = TransformersEncoder(tokenizer)
    asked = pairs(encoder)
    got = Scorer(model, encoder, max_seq_len=256, batch_tokens=900).continuation_scores(asked)
    for context, continuation in asked:
        with torch.inference_mode():
            logprobs = theirs(torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
        rows = logprobs[len(context) - 1 : -1]
        expected = sum(row[token].item() for row, token in zip(rows, continuation, strict=True))
        answer = got[context, continuation]
        assert answer.sum_logprob == pytest.approx(expected, abs=1e-4)
        assert list(answer.greedy) == rows.argmax(-1).tolist()


SHARES = {"gpt2", "llama", "mistral", "mixtral", "cohere", "granite"}  # gemma2 caps its attention, bloom and gpt_neo have their own


@pytest.mark.parametrize("name", [*sorted(SHARES), "gemma2", "bloom", "gpt_neo"])
def test_beginnings_are_shared_where_the_architecture_allows_it_and_change_no_score(name, tmp_path):
    model, tokenizer = outside_models.load(outside_folders.write(tmp_path, name))
    assert (model.cache_type is not None) is (name in SHARES)
    encoder = TransformersEncoder(tokenizer)
    beginnings = [tuple(encoder.encode(text[:n], False)) for (_, _, text), n in zip(documents()[:2], (450, 200), strict=True)]
    asked = [((*beginning, *context)[:250], continuation[:6]) for beginning in beginnings for context, continuation in pairs(encoder)]
    assert max(len(context) for context, _ in asked) == 250  # close to the last of 256 positions, which padding goes beyond

    def found(some, batch_tokens):
        scorer = Scorer(model, encoder, max_seq_len=256, batch_tokens=batch_tokens)
        return scorer.continuation_scores(some), scorer.positions.real

    expected, positions = found(asked, 4096)
    model.cache_type, shared = None, model.cache_type
    plain, all_positions = found(asked, 4096)
    assert {pair: score.sum_logprob for pair, score in plain.items()} == pytest.approx({pair: score.sum_logprob for pair, score in expected.items()}, abs=2e-4)
    model.cache_type = shared
    if shared:
        assert positions < 0.6 * all_positions
    if shared and name != "mixtral":  # whose experts are transformers' own
        assert found(asked[::-1], 100)[0] == expected and found(asked[3:5], 4096)[0] == {pair: expected[pair] for pair in asked[3:5]}


def test_greedy_text_is_that_of_transformers(llama):
    import transformers

    model, tokenizer = outside_models.load(llama)
    encoder = TransformersEncoder(tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    contexts = [context for context, _ in pairs(encoder)[::2]]
    for context, text in zip(contexts, Scorer(model, encoder, max_seq_len=256).generate(contexts, 6, ()), strict=True):
        new = theirs.generate(torch.tensor([context]), max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=0)[0, len(context) :]
        assert text == encoder.decode(new.tolist())


def test_a_head_that_no_config_tells_of_is_answered_by_the_model_itself(llama):
    import transformers

    class Doubled(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 2
            return found

    plain, tokenizer = outside_models.load(llama)
    doubled = outside_models.OutsideModel(Doubled.from_pretrained(llama, dtype=torch.float32))
    assert not doubled.splits
    encoder = TransformersEncoder(tokenizer)
    context, continuation = pairs(encoder)[1]
    with torch.inference_mode():
        rows = (2 * plain.model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].double()).log_softmax(-1)
    expected = sum(row[token].item() for row, token in zip(rows, continuation, strict=True))
    assert Scorer(doubled, encoder, max_seq_len=256).continuation_scores([(context, continuation)])[context, continuation].sum_logprob == pytest.approx(
        expected, abs=1e-4
    )


def damaged(folder, what, tmp_path):  # noqa: PLR0912 - a list of ways to be broken
    """A copy of ``folder`` with one thing wrong."""
    import shutil

    copy = tmp_path / "model"
    if what == "missing":
        return copy
    if what == "loop":
        copy.symlink_to(copy)
        return copy
    shutil.copytree(folder, copy)
    file = copy / "config.json"
    if what == "no config":
        file.unlink()
    elif what == "huge config":
        file.write_text(json.dumps({"padding": "x" * outside_models.MAX_CONFIG_BYTES}))
    elif what == "deep config":
        file.write_text('{"a":' * 100_000)
    elif what == "list config":
        file.write_text("[]")
    elif what == "config loop":
        file.unlink()
        file.symlink_to(file)
    elif what == "unknown architecture":
        file.write_text(json.dumps({"model_type": "no-such-model"}))
    elif what == "remote code":
        file.write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}))
        (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    elif what == "pickle":
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    elif what == "no weights":
        (copy / "model.safetensors").unlink()
    elif what == "torn weights":
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "deeper than the weights":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3, "layer_types": None}))
    elif what == "tokenizer of another model":
        tokens = json.loads((copy / "tokenizer.json").read_text())
        tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 5000, "content": "<far>"})
        tokens["model"]["vocab"]["<far>"] = 5000
        (copy / "tokenizer.json").write_text(json.dumps(tokens))
    elif what == "no tokenizer":
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer_config.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "is not a folder"), ("loop", "is not a folder|cannot be read"), ("no config", "has no config.json"),
        ("huge config", "bytes; a model's config"),
        ("deep config", "is not JSON"), ("list config", "holds a list"),
        ("config loop", "no config.json|cannot be read"),
        ("unknown architecture", "cannot be loaded|cannot be read"), ("remote code", "cannot be loaded|cannot be read"), ("pickle", "only pickled weights"),
        ("no weights", "has no .*safetensors"), ("torn weights", "cannot be loaded"), ("deeper than the weights", "lacks .* weights"),
        ("tokenizer of another model", "ids up to 5000, the model has a vocabulary of 1024"), ("no tokenizer", "tokenizer cannot be read"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_a_whole_model_is_refused_by_name(what, message, llama, tmp_path):
    folder = damaged(llama, what, tmp_path)
    with pytest.raises(ValueError, match=message):
        outside_models.load(folder)
    assert not (tmp_path / "model" / "ran").exists()


def test_broken_weights_are_named(llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "m")
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not numbers"):
        outside_models.load(tmp_path / "m")
