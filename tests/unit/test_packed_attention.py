"""Attention in blocks equals masked attention, whatever the documents, and models of long sequences use it."""

from dataclasses import replace

import pytest
import torch

from models import packed_attention, transformer
from models.config import ModelConfig
from models.packed_attention import attend_packed, query_blocks
from models.train_loop import new_model

T, H, K, SIZE = 300, 4, 2, 8
DOCUMENTS = {
    "one document": [T],
    "documents over and within blocks": [5, 130, 1, 64, 60, 40],
    "documents of one token": [1] * T,
    "boundaries on blocks": [128, 128, 44],
}


def ids_of(lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def parts(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, T, SIZE, dtype=dtype, requires_grad=True) for heads in (H, K, K))


@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS)
def test_blocks_give_what_a_mask_gives_in_float64_forward_and_backward(lengths: list[int]) -> None:
    ids = torch.stack((ids_of(lengths), ids_of([100, 200])))
    ids[1, 250:] = -1  # padding attends to itself, and nobody to it
    allowed = torch.ones(T, T, dtype=torch.bool).tril() & (ids[:, :, None] == ids[:, None, :])
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill_(~allowed, float("-inf"))[:, None]
    q, k, v = parts(torch.float64)
    way = torch.randn(2, H, T, SIZE, dtype=torch.float64)
    results = [transformer.attend(q, k, v, mask), attend_packed(q, k, v, query_blocks(ids, torch.float64))]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((out * way).sum(), (q, k, v)) for out in results]
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-12)


def test_bf16_is_within_its_rounding_of_float64() -> None:
    ids = ids_of([200, 100]).expand(2, -1)
    exact = attend_packed(*parts(torch.float64), query_blocks(ids, torch.float64))
    rounded = attend_packed(*(p.detach().bfloat16() for p in parts(torch.float64)), query_blocks(ids, torch.bfloat16))
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0.02 * float(exact.abs().max().detach()))


def test_keys_start_at_few_places_so_that_few_kernels_are_compiled() -> None:
    blocks = query_blocks(torch.randint(0, 40, (4, T), generator=torch.Generator().manual_seed(1)).sort(1).values, torch.float32)
    assert {block.first % packed_attention.ALIGN for block in blocks} == {0}
    assert all(block.first <= block.start and block.mask_QS.isfinite().any(1).all() for block in blocks)


def test_a_model_of_long_sequences_trains_the_same_with_blocks_as_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, ffn_hidden=48, vocab_size=64, max_seq_len=512, init_std=0.2)
    model = new_model(config, seed=1)
    tokens, ids = torch.randint(0, 64, (2, 512)), torch.stack([torch.arange(512) // 200, torch.arange(512) // 333])
    used = []
    monkeypatch.setattr(transformer, "attend_packed", lambda *arguments: used.append(1) or attend_packed(*arguments))

    def losses(least: int) -> tuple[float, dict[str, torch.Tensor]]:
        monkeypatch.setattr(transformer, "LEAST_POSITIONS", least)
        out = model.forward_loss(tokens, ids)
        return float(out.loss.detach()), dict(zip(dict(model.named_parameters()), torch.autograd.grad(out.loss, list(model.parameters())), strict=True))

    with_mask, with_blocks = losses(513), losses(512)
    assert len(used) == config.n_layers and with_blocks[0] == pytest.approx(with_mask[0], rel=1e-6)
    for name, grad in with_mask[1].items():
        torch.testing.assert_close(with_blocks[1][name], grad, rtol=0, atol=1e-5 * float(grad.abs().max()) + 1e-8)
    short = new_model(replace(config, max_seq_len=256), seed=1)
    short.forward_loss(tokens[:, :256], ids[:, :256])
    assert len(used) == config.n_layers
