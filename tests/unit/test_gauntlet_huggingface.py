"""The same weights in Hugging Face's own DBRX give the same answers: an oracle that shares no code with our model or scorer."""

from __future__ import annotations

import pytest
import torch
from gauntlet_examples import documents, encoder, model, scorer, tokenizer_json

from models import huggingface
from models.gauntlet import own_data, suite
from models.gauntlet.prompts import TransformersEncoder
from models.gauntlet.scoring import score
from models.gauntlet.tasks import Benchmark, Item, Task


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(DbrxForCausalLM, tokenizer) loaded by transformers from an exported folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dbrx")
    huggingface.export(model(), model().config, folder, tokenizer_json(), eos_id=0, pad_id=1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    torch.set_num_threads(before)


def test_both_tokenizers_read_a_text_alike(exported):
    _, tokenizer = exported
    for _, _, text in documents()[:5]:
        assert TransformersEncoder(tokenizer).encode(text[:2000], False) == encoder().encode(text[:2000], False)


def test_log_probabilities_equal_those_of_transformers(exported):
    theirs, _ = exported
    made = own_data.make_items(documents()[:40], task="next_line", seed=1)
    own = Benchmark(suite.task("next_line"), tuple(Item(i.item_id, i.row) for i in made[:12]))
    shots = Task(label="t", kind="multiple_choice", category="c", num_fewshot=2, continuation_delimiter="\nAnswer: ")
    quiz = Benchmark(
        shots, tuple(Item(str(i), {"query": f"Question: {i} or {i * 7}?", "choices": ["the first", "second", "none"], "gold": i % 3}) for i in range(6))
    )
    from models.gauntlet.prompts import assemble

    for benchmark in (own, quiz):
        for request, response in zip(assemble(benchmark, encoder(), 256), score(benchmark, scorer()), strict=True):
            for context, continuation, ours in zip(request.contexts, request.continuations, response.sum_logprobs, strict=True):
                with torch.inference_mode():
                    logits = theirs(torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
                expected = sum(logits[len(context) - 1 + i, token].item() for i, token in enumerate(continuation))
                assert ours == pytest.approx(expected, abs=5e-4)


def test_greedy_text_equals_that_of_transformers(exported):
    theirs, _ = exported
    contexts = [tuple(encoder().encode(text[:150], False)) for _, _, text in documents()[:3]]
    ours = scorer().generate(contexts, 6, ())
    for context, text in zip(contexts, ours, strict=True):
        new = theirs.generate(torch.tensor([context]), max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=0)[0, len(context) :]
        assert text == encoder().decode([t for t in new.tolist() if t > 1])
