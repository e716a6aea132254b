"""The built-in recipes: published sizes, dense twins of equal active size, memory that fits, and what the command shows of them."""

import json

import pytest
import torch

from jobs import cli, recipes, sizing
from models.transformer import Transformer

PUBLISHED = {"dbrx": (131.6, 36.5), "moe_b": (23.5, 6.6)}  # billions, total and active: DBRX's shapes recomputed; DBRX blog, 27 March 2024
TRAINABLE = [name for name in recipes.RECIPES if name not in ("smoke", "dbrx") and not name.endswith("_dense")]


def on_meta(name: str) -> Transformer:
    with torch.device("meta"):
        return Transformer(recipes.load(name).model, recipes.load(name).train.experts_backend)


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_builds_with_the_parameters_its_config_counts(name):
    counted, built = recipes.load(name).model, on_meta(name)
    assert sum(p.numel() for p in built.parameters()) == counted.params_total
    experts = sum(p.numel() for n, p in built.named_parameters() if ".experts." in n)
    assert counted.params_total - experts + experts * counted.top_k // counted.n_experts == counted.params_active
    if name in PUBLISHED:
        assert (round(counted.params_total / 1e9, 1), round(counted.params_active / 1e9, 1)) == PUBLISHED[name]


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_dense_twin_has_the_active_size_and_costs_the_same_flops(name):
    sparse, dense = recipes.load(name), recipes.load(f"{name}_dense")
    assert dense.model.params_total == dense.model.params_active == pytest.approx(sparse.model.params_active, rel=0.01)
    assert sizing.training_flops(dense.train) == pytest.approx(sizing.training_flops(sparse.train), rel=0.01)
    assert dense.pack == sparse.pack and dense.tokens == sparse.tokens and dense.train.seed == sparse.train.seed


def test_the_recipe_for_one_h200_fits_into_it_and_leaves_room_for_a_step():
    train = recipes.load("h200").train
    room = 141e9 - sizing.state_bytes(train)
    model, tokens = train.model, train.micro_batch_sequences * train.model.max_seq_len
    activations = tokens * model.n_layers * 2 * (model.top_k * (2 * model.d_model + 4 * model.ffn_hidden) + 20 * model.d_model)
    assert 70e9 < sizing.state_bytes(train) < 100e9 and activations < 0.75 * room
    assert 3e9 < model.params_total < 6e9


def test_memory_counts_masters_gradients_adam_and_the_rounded_copy():
    fp32, bf16 = recipes.load("tiny").train, recipes.load("h200").train
    assert sizing.state_bytes(fp32) == 16 * fp32.model.params_total and sizing.state_bytes(bf16) == 18 * bf16.model.params_total


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_a_forecast_costs_less_than_what_it_forecasts(name):
    sized = sizing.size(recipes.load(name))
    assert sized["proxy_flops"] < (0.6 if sized["flops"] < 1e18 else 0.1) * sized["flops"]


def test_the_command_lists_sizes_flops_memory_hours_and_budget(env, capsys):
    assert cli.main(["recipes", "--home", str(env.home), "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    row = listed["h200"]
    assert row["params_active"] == recipes.load("h200").model.params_active and row["budget_usd"] == 1500.0
    assert row["flops"] == pytest.approx(6 * 1.25e9 * 25e9, rel=0.1)  # 6 x active matrix parameters x tokens, and some attention
    assert row["gpu_hours"] == pytest.approx((row["flops"] + row["proxy_flops"]) / 989e12 / 0.4 / 3600)
    assert cli.main(["recipes", "--home", str(env.home)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("h200 "))
    assert (
        "4,488,349,696 parameters (1,317,455,872 active)" in line
        and "75.2 GiB of training state" in line
        and "GPU hours" in line
        and "budget $1,500.00" in line
    )
