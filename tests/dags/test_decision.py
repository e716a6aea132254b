"""What a person reads when a forecast is over its budget or not worth its money."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

build_model = pytest.importorskip("build_model")

METRICS: dict[str, Any] = {
    "decision": "ask", "why": "doubtful gain", "cost_usd": 0.123, "cost_usd_low": 0.1, "cost_usd_high": 0.2, "spent_usd": 0.01, "budget_usd": 0.25, "loss": 4.5,
    "gate_sentences": ["the training would cost 0.1230 USD; the budget is 0.2500 USD", "expected gain over champion v3: +0.40 points, 0.3075 USD per point"],
}  # fmt: skip


def rendered(template: str, metrics: dict[str, Any]) -> str:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    asked = SimpleNamespace(xcom_pull=lambda task_ids: {"metrics": metrics})
    return SandboxedEnvironment(undefined=StrictUndefined).from_string(template).render(ti=asked, params=SimpleNamespace(recipe="tiny"))


def test_the_question_holds_the_numbers_of_the_decision() -> None:
    assert rendered(build_model.approve.subject, METRICS) == "Doubtful gain: train tiny anyway?"
    body = rendered(build_model.approve.body, METRICS)
    for words in ("**0.12 USD** (95 %: 0.10 to 0.20)", "the budget is **0.25 USD**", "4.500 nats/token", "+0.40 points, 0.3075 USD per point"):
        assert words in body


def test_the_decision_goes_on_asks_or_stops_with_the_reason() -> None:
    decide = build_model.check_budget.function
    assert decide({"metrics": METRICS}) == "approve"
    assert decide({"metrics": {**METRICS, "decision": "go"}}) == "train"
    for why, words in (("over budget", "Over budget, nothing was trained: .*budget is 0.2500 USD"), ("not worth it", r"Not worth it.*\+0.40 points")):
        with pytest.raises(build_model.AirflowFailException, match=words):
            decide({"metrics": {**METRICS, "decision": "stop", "why": why}})
