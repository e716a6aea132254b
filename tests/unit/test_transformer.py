"""The decoder: DBRX's names and sizes, documents that cannot see each other, exact loss, exact cache."""

from dataclasses import replace

import pytest
import torch

from models.config import ModelConfig
from models.cross_entropy import summed_cross_entropy
from models.train_loop import new_model
from models.transformer import KVCache, Transformer, document_positions

CONFIG = ModelConfig(d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=48, vocab_size=64, max_seq_len=64, init_std=0.2)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return new_model(CONFIG, seed=1).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_dbrx_itself_builds_on_the_meta_device_with_its_names_and_shapes() -> None:
    dbrx = ModelConfig(d_model=6144, n_heads=48, n_kv_heads=8, n_layers=40, ffn_hidden=10_752, vocab_size=100_352, max_seq_len=32_768)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Transformer(dbrx).state_dict().items()}
    assert sum(torch.Size(s).numel() for s in shapes.values()) == 131_596_523_520 == dbrx.params_total
    block = "transformer.blocks.39."
    assert {name: shape for name, shape in shapes.items() if name.startswith(block) or ".blocks." not in name} == {
        "transformer.wte.weight": (100_352, 6144), "lm_head.weight": (100_352, 6144), "transformer.norm_f.weight": (6144,),
        f"{block}norm_attn_norm.norm_1.weight": (6144,), f"{block}norm_attn_norm.norm_2.weight": (6144,),
        f"{block}norm_attn_norm.attn.Wqkv.weight": (6144 + 2 * 8 * 128, 6144), f"{block}norm_attn_norm.attn.out_proj.weight": (6144, 6144),
        f"{block}ffn.router.layer.weight": (16, 6144), **{f"{block}ffn.experts.mlp.{w}": (16 * 10_752, 6144) for w in ("w1", "v1", "w2")},
    }  # fmt: skip


def test_a_document_gives_the_same_logits_packed_and_alone(model: Transformer) -> None:
    packed, lengths = tokens(2, 40), [7, 20, 13]
    ids = torch.repeat_interleave(torch.tensor([0, 1, 2]), torch.tensor(lengths)).expand(2, -1)
    together = model(packed, document_ids_BT=ids).logits_BTV
    start = 0
    for length in lengths:
        alone = model(packed[:, start : start + length]).logits_BTV
        torch.testing.assert_close(together[:, start : start + length], alone, rtol=0, atol=2e-5)
        start += length
    unpacked = model(packed).logits_BTV  # without document ids the second document does see the first
    assert (unpacked[:, 10:] - together[:, 10:]).abs().max() > 0.01


def test_outputs_do_not_depend_on_later_tokens_padding_or_other_sequences(model: Transformer) -> None:
    one = tokens(1, 20)
    alone = model(one).logits_BTV
    later = torch.cat((one, tokens(1, 5, seed=5)), 1)
    torch.testing.assert_close(model(later).logits_BTV[:, :20], alone, rtol=0, atol=2e-5)
    ids = torch.zeros_like(later)
    ids[:, 20:] = -1
    torch.testing.assert_close(model(later, document_ids_BT=ids).logits_BTV[:, :20], alone, rtol=0, atol=2e-5)
    batch = torch.cat((tokens(3, 20, seed=9), one))
    torch.testing.assert_close(model(batch).logits_BTV[3:], alone, rtol=0, atol=2e-5)


def test_positions_restart_at_every_document() -> None:
    assert document_positions(torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [4, 4, 4, 4, 4, 4, 4, 4]])).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], list(range(8))]


def test_attention_uses_positions(model: Transformer) -> None:
    """Rotary embedding is relative: shifting all positions changes nothing, spreading them does."""
    text = tokens(1, 12)
    straight, shifted, spread = (model(text, positions=p).logits_BTV for p in (torch.arange(12), torch.arange(12) + 30, torch.arange(12) * 2))
    torch.testing.assert_close(straight, shifted, rtol=0, atol=1e-4)
    assert (straight - spread).abs().max() > 0.01


def test_loss_is_the_mean_over_targets_inside_documents_only(model: Transformer) -> None:
    text = tokens(2, 12)
    ids = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3, [0] * 12])
    with torch.no_grad():
        out = model.forward_loss(text, ids)
    log_probs = model(text, document_ids_BT=ids).logits_BTV.detach().log_softmax(-1)
    targets = [(0, t) for t in (0, 1, 2, 3, 5, 6, 7)] + [(1, t) for t in range(11)]
    expected = -sum(float(log_probs[b, t, text[b, t + 1]]) for b, t in targets) / len(targets)
    assert out.n_tokens == len(targets) == 18
    assert float(out.next_token_loss) == pytest.approx(expected, rel=1e-5)
    assert float(out.loss) == pytest.approx(float(out.next_token_loss) + float(out.load_balancing_loss), rel=1e-6)
    assert out.tokens_per_expert_LE.shape == (2, 16) and (out.tokens_per_expert_LE.sum(1) == 21 * 4).all()  # 21 tokens are not padding


def test_loss_mask_chooses_the_targets(model: Transformer) -> None:
    text, ids = tokens(1, 8), torch.zeros(1, 8, dtype=torch.int64)
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, [0, 3, 6]] = True  # the first token is nobody's target
    log_probs = model(text).logits_BTV.detach().log_softmax(-1)
    with torch.no_grad():
        out = model.forward_loss(text, ids, mask)
    assert out.n_tokens == 2
    assert float(out.next_token_loss) == pytest.approx(-float(log_probs[0, 2, text[0, 3]] + log_probs[0, 5, text[0, 6]]) / 2, rel=1e-5)


def test_nothing_to_predict_gives_a_finite_zero_loss(model: Transformer) -> None:
    with torch.no_grad():
        out = model.forward_loss(tokens(1, 6), torch.full((1, 6), -1))
    assert out.n_tokens == 0 and float(out.loss) == 0.0


@pytest.mark.parametrize("rows", [1, 300])
def test_chunked_cross_entropy_equals_torch_in_value_and_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cross_entropy.CHUNK_ELEMENTS", 64 * 70)  # several chunks, the last one shorter
    monkeypatch.setattr("models.cross_entropy.BLOCK_ELEMENTS", 64 * 16)  # of several blocks each
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 32, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    targets = torch.randint(0, 64, (rows,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum") * 0.5
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    total = summed_cross_entropy(hidden, weight, targets) * 0.5
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(total, (hidden, weight)), expected_grads, rtol=1e-4, atol=1e-4)


def test_a_shared_prefix_in_the_cache_gives_the_logits_of_the_whole_text(model: Transformer) -> None:
    lengths, prefixes, choices = torch.tensor([9, 4]), tokens(2, 9), tokens(5, 6, seed=2)
    cache = KVCache()
    model.hidden(prefixes, cache=cache, lengths_B=lengths)
    repeats = torch.tensor([3, 2])
    for _ in range(2):  # expanding leaves the cache usable
        got = model(choices, cache=cache.expand(repeats)).logits_BTV
        for row, owner in enumerate([0, 0, 0, 1, 1]):
            whole = torch.cat((prefixes[owner, : lengths[owner]], choices[row]))[None]
            torch.testing.assert_close(got[row], model(whole).logits_BTV[0, lengths[owner] :], rtol=0, atol=2e-5)
    assert cache.lengths_B.tolist() == [9, 4]


def test_decoding_one_token_at_a_time_equals_one_pass(model: Transformer) -> None:
    text, cache = tokens(2, 10), KVCache()
    steps = [model(text[:, t : t + 1], cache=cache).logits_BTV for t in range(10)]
    torch.testing.assert_close(torch.cat(steps, 1), model(text).logits_BTV, rtol=0, atol=2e-5)


def test_cache_misuse_is_an_error_that_says_what_to_do(model: Transformer) -> None:
    cache = KVCache()
    model.hidden(tokens(2, 4), cache=cache)
    with pytest.raises(ValueError, match="expand"):
        model.hidden(tokens(3, 4), cache=cache)
    with pytest.raises(ValueError, match="either document_ids_BT or cache"):
        model.hidden(tokens(2, 4), cache=cache, document_ids_BT=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="lengths_B"):
        model.hidden(tokens(2, 4), lengths_B=torch.tensor([4, 2]))


def test_clip_qkv_bounds_queries_keys_and_values(model: Transformer) -> None:
    clipped = Transformer(replace(CONFIG, clip_qkv=0.1)).eval()
    clipped.load_state_dict(model.state_dict())
    seen = {}
    clipped.transformer.blocks[0].norm_attn_norm.attn.out_proj.register_forward_hook(lambda _m, inputs, _o: seen.update(value=inputs[0]))
    clipped(tokens(1, 8))
    assert seen["value"].abs().max() <= 0.1 + 1e-6  # an average of clipped values
    assert (clipped(tokens(1, 8)).logits_BTV - model(tokens(1, 8)).logits_BTV).abs().max() > 0.01


def test_same_seed_same_weights_and_norms_are_one() -> None:
    first, second, other = (new_model(CONFIG, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert (first["transformer.norm_f.weight"] == 1).all()
    assert float(first["transformer.blocks.0.ffn.experts.mlp.w1"].std()) == pytest.approx(0.2, rel=0.02)


def test_weights_drawn_by_width_keep_activations_of_order_one() -> None:
    """A token's residual stream enters and leaves the blocks with a size that does not depend on the width."""
    sizes = {}
    for width in (32, 256):
        config = replace(CONFIG, d_model=width, ffn_hidden=width, init="by_width", init_std=0.02)
        model = new_model(config, seed=1).eval()
        stds = {name: float(p.detach().std()) for name, p in model.named_parameters()}
        assert stds["transformer.wte.weight"] == pytest.approx(1.0, rel=0.1)
        assert stds["lm_head.weight"] == pytest.approx(0.02, rel=0.1)
        assert stds["transformer.blocks.0.ffn.experts.mlp.v1"] == pytest.approx(width**-0.5, rel=0.1)
        assert stds["transformer.blocks.1.ffn.experts.mlp.w2"] == pytest.approx((2 * config.n_layers * width) ** -0.5, rel=0.1)
        stream = []
        model.transformer.norm_f.register_forward_hook(lambda _m, inputs, _o, stream=stream: stream.append(inputs[0]))
        model(tokens(2, 32))
        sizes[width] = float(stream[0].detach().std())
    assert sizes[32] == pytest.approx(sizes[256], rel=0.3)
    with pytest.raises(ValueError, match="init must be"):
        replace(CONFIG, init="by_magic")
