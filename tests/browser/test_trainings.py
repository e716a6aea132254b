"""Trainings: what the run's own files say, while it trains and after it was killed; hostile names stay text, on any screen."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import training_parts as parts

from jobs import recipes
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import live_training, telemetry, training, training_data
from jobs.services.run_control import Allowance
from jobs.services.training import TrainingRun

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
KEY, CONFIG = "a" * 32, recipes.load("tiny").train
STEPS, LAYERS, EXPERTS = CONFIG.steps, CONFIG.model.n_layers, CONFIG.model.n_experts


def loss_at(step: int) -> float:
    return 3.2 + 5.0 * math.exp(-step / (STEPS / 6)) + 0.15 * math.sin(step * 1.7)


def line(step: int) -> dict[str, Any]:
    counts = [[100 + 60 * ((layer + expert + step) % 3) for expert in range(EXPERTS)] for layer in range(LAYERS)]
    if step > 10:
        counts[1][2] = 0
    return {
        "event": "step", "at": 1000.0 + step, "step": step, "tokens": step * CONFIG.tokens_per_step, "loss": float("nan") if step == 7 else loss_at(step),
        "tokens_per_second": 9000.0 + 500 * math.sin(step), "mfu": 0.31, "cost_usd": 0.0002 * step, "grad_norm": 1.0, "learning_rate": 1e-3,
        "router_confidence": 0.4, "expert_load_max_over_mean": 1.6, "skipped": step == 7, "skipped_because": "not finite" if step == 7 else "",
        "tokens_per_expert": counts if step % 5 == 0 else None,
    }  # fmt: skip


def write(env: Environment, lines: list[dict[str, Any]], *, key: str = KEY, recipe: str = HOSTILE, forecast: bool = True) -> Path:
    folder = env.artifacts / "checkpoints" / key
    folder.mkdir(parents=True, exist_ok=True)
    end = STEPS * CONFIG.tokens_per_step
    points = [(end * i // 50, 3.1 * (50 / i) ** 0.25, 2.9 * (50 / i) ** 0.25, 3.4 * (50 / i) ** 0.25) for i in range(1, 51)]
    curve = {"predicted": 3.1, "low": 2.9, "high": 3.4, "form": "hoffmann", "points": points} if forecast else None
    telemetry.write_about(folder, CONFIG, recipe=recipe, currency="USD", budget_usd=0.25, curve=curve)
    (folder / training.METRICS).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def until(last: int) -> list[dict[str, Any]]:
    began = {"event": "started", "at": 1000.0, "step": 0, "steps": STEPS, "peak_flops": 1e11}
    failed = {"event": "checkpoint", "at": 1.0, "step": 50, "seconds": 1.0, "stalled_seconds": 0.1, "error": f"No space left {HOSTILE}"}
    return [began, *(line(step) for step in range(1, last + 1)), failed]


@pytest.fixture
def address(env: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOELINE_HOME", str(env.home))
    return page_server.removesuffix("page") + "training"


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    return page


def tile(page: Any, label: str) -> list[str]:
    return page.locator(".tile", has_text=label).locator("b, .tile-detail").all_inner_texts()


def test_only_what_is_new_is_read_and_a_rewritten_file_from_its_start(env: Environment) -> None:
    folder = write(env, until(20))
    first = live_training.read(env, KEY)
    assert (first["begins"], first["more"], first["state"], first["about"]["recipe"]) == (True, False, "running", HOSTILE)
    assert first["columns"]["step"] == list(range(1, 21)) and first["columns"]["loss"][6] is None
    assert [step for step, _ in first["heat"]] == [5, 10, 15, 20]
    assert [e["what"] for e in first["events"]] == ["started", "batch skipped: not finite", f"checkpoint failed: No space left {HOSTILE}"]
    with (folder / training.METRICS).open("a") as lines:
        lines.write(json.dumps(line(21)) + "\n" + json.dumps(line(22))[:40])
    following = live_training.read(env, KEY, file=first["file"], offset=first["offset"])
    assert (following["columns"]["step"], following["begins"]) == ([21], False)
    assert live_training.read(env, KEY, file=following["file"], offset=following["offset"])["columns"]["step"] == []
    rewritten = folder / "other"
    rewritten.write_text(json.dumps(line(1)) + "\n")
    os.replace(rewritten, folder / training.METRICS)
    assert live_training.read(env, KEY, file=following["file"], offset=following["offset"])["columns"]["step"] == [1]


def test_a_long_run_arrives_in_parts(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    write(env, until(100))
    monkeypatch.setattr(live_training, "MAX_BYTES", 5000)
    steps, answer = [], {"file": "", "offset": 0, "more": True}
    while answer["more"]:
        answer = live_training.read(env, KEY, file=answer["file"], offset=answer["offset"])
        steps += answer["columns"]["step"]
    assert steps == list(range(1, 101))


def test_states_and_unknown_runs(env: Environment) -> None:
    folder = write(env, until(5))
    assert [t["state"] for t in live_training.trainings(env)] == ["running"]
    os.utime(folder / training.METRICS, (1, 1))
    assert live_training.trainings(env)[0]["state"] == "stopped"
    (folder / training.ERROR).write_text(json.dumps({"error": "x"}))
    assert live_training.read(env, KEY)["state"] == "failed"
    (folder / training.RESULT).write_text(json.dumps({"ended_early": "budget", "held_out_loss": float("nan"), "loss": 3.0, "steps": 5}))
    assert live_training.read(env, KEY)["result"] == {"loss": 3.0, "held_out_loss": None, "steps": 5, "ended_early": "budget"}
    for key in ("b" * 32, "../../secret", ""):
        with pytest.raises(MoelineError, match="No training with run key"):
            live_training.read(env, key)


def test_without_a_training_it_says_what_to_run(address: str, open_page: Callable[..., Any]) -> None:
    assert "moeline run --recipe tiny" in opened(open_page(), address).locator("main").inner_text()


def test_tiles_curves_and_cells_say_what_the_run_wrote_and_hostile_text_stays_text(env: Environment, address: str, open_page: Callable[..., Any]) -> None:
    write(env, until(STEPS // 2))
    page = opened(open_page(width=1440, height=1500), address)
    half = STEPS // 2
    assert tile(page, "Step")[0] == f"{half:,} of {STEPS:,}"
    assert tile(page, "Loss, last 20 steps") == [f"{sum(loss_at(s) for s in range(half - 19, half + 1)) / 20:.3f}", "forecast 3.100"]
    assert tile(page, "Tokens per second")[1] == "MFU 31.0 %"
    assert tile(page, "Cost so far") == [f"${0.0002 * half:.4f}", "budget $0.2500"]
    assert page.locator("#loss .forecast-band").count() == 1 and page.locator("#loss .mark-event").count() == 2
    step = half - half % 5
    rows = page.locator("#heat .layer").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert len(rows) == LAYERS and page.locator("#heat .cell").count() == LAYERS * EXPERTS
    counts = line(step)["tokens_per_expert"][1]
    most = max(range(EXPERTS), key=lambda i: counts[i])
    assert rows[1] == (
        f"Layer 2 at step {step}, Busiest: expert {most + 1} with {counts[most] * EXPERTS / sum(counts):.2f} x the mean, "
        f"Idlest: expert 3 with 0.00 x the mean, 1 starved"
    )
    page.locator("#heat input").fill("0")
    assert "at step 5" in page.locator("#heat .layer").first.get_attribute("aria-label")
    assert HOSTILE in page.locator("#lede").inner_text() and HOSTILE in page.locator("#events").inner_text()
    assert page.locator("main img, main script").count() == 0
    page.locator("#loss rect.hit").focus()
    page.keyboard.press("ArrowLeft")
    assert "was forecast to end at" in page.locator("#tooltip").inner_text()


def test_a_real_training_is_followed_without_a_reload(env: Environment, address: str, open_page: Callable[..., Any], tmp_path: Path) -> None:
    data = training_data.write(parts.sequences(tmp_path), tmp_path / "files")
    folder = env.artifacts / "checkpoints" / KEY
    config = parts.small_train(tokens=4000 * 8 * parts.SEQ_LEN)
    allowance = Allowance(usd=14.0, usd_per_second=1.0, since=time.time(), limit_usd=14.0)
    folder.mkdir(parents=True)
    telemetry.write_about(folder, config, recipe="live", currency="USD", budget_usd=14.0, curve=None)
    work = threading.Thread(target=training.train_all, args=([TrainingRun(str(folder), data.folder, config, allowance=allowance)],), kwargs={"threads": 1})
    work.start()
    while not (folder / training.METRICS).is_file() or not any(one["event"] == "step" for one in training.read_metrics(folder / training.METRICS)):
        time.sleep(0.1)
    page = opened(open_page(), address)
    seen, deadline = [], time.monotonic() + 60
    while len(seen) < 3:
        step = int(tile(page, "Step")[0].split(" ")[0].replace(",", ""))
        seen += [step] if step not in seen else []
        assert time.monotonic() < deadline
        page.wait_for_timeout(300)
    assert seen == sorted(set(seen))
    work.join()
    page.wait_for_selector(".state.early", timeout=30_000)
    assert "It ended early: its budget was used up." in page.locator("#lede").inner_text()
    assert tile(page, "Held-out loss")[0] == f"{training.result_of(folder)['held_out_loss']:.3f}"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_nothing_is_cut_off_on_a_phone_and_in_the_dark(env: Environment, address: str, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    write(env, until(STEPS // 3), recipe="tiny")
    write(env, until(10), key="b" * 32, recipe="small", forecast=False)
    os.utime(env.artifacts / "checkpoints" / ("b" * 32) / training.METRICS, (1, 1))
    page = opened(open_page(width=width, height=1600, color_scheme=scheme), address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("Training", exact=True).select_option("b" * 32)
    page.wait_for_selector(".state.stopped")
    assert "No forecast was made" in page.locator("#loss").inner_text() and page.locator("#loss .forecast-band").count() == 0
    page.get_by_label("Training", exact=True).select_option(KEY)
    page.wait_for_selector(".state.running")
    if folder := os.environ.get("MOELINE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/trainings-{scheme}.png", full_page=True)
