# `make` alone explains. The work is done by infra/local/bootstrap.py and the `moeline` command.
.DEFAULT_GOAL := help
.PHONY: help run setup test lint golden screenshot bench bench-eval bench-prepare bench-train bench-forecast bench-gpu bench-page bench-growth kills chaos crowd soak up down status clean lock sbom audit

# The first Python that fits; its shim may exist without a version behind it, so it is asked.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
RECIPE ?= tiny
DAYS ?= 3
TESTS ?=
WORKERS ?= 2
SEED ?= 1
SEEDS ?= 1
bin := .venv/bin

help: ## This text
	@echo "moeline: from raw text to a registered mixture-of-experts model. Needs Python 3.11 or 3.12, a JDK 17 or 21, make."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  Afterwards: .venv/bin/moeline --help"

run: ## Everything: environment, platform, the main job on the sample corpus (RECIPE=tiny DAYS=3); again: nothing is recomputed
	@$(PYTHON) infra/local/bootstrap.py run --recipe $(RECIPE) --days $(DAYS)

setup: ## Only .venv from requirements.lock and the Delta JARs
	@$(PYTHON) infra/local/bootstrap.py setup

test: ## All tests (TESTS="tests/unit -k gates" for some), in two processes (WORKERS=0: in one)
	@$(PYTHON) infra/local/bootstrap.py test-setup
	@$(bin)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(TESTS)

lint: setup ## Style and formatting
	@$(bin)/ruff check . && $(bin)/ruff format --check .

golden: setup ## Rewrite the golden files from what the code gives now; review the difference before committing
	@MOELINE_REWRITE_GOLDEN=1 $(bin)/python -m pytest tests/golden

screenshot: setup ## Rewrite the README's picture of the page
	@PYTHONPATH=. $(bin)/python tests/browser/screenshot.py

bench: setup ## Measure the fixed costs
	@$(bin)/python -m pytest tests/bench -s -o python_files='bench_*.py'

bench-eval: setup ## Measure scoring beside lm_eval's hf backend (BENCH_TOKENS=1500 per task)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_eval.py -s -q -o python_files='bench_*.py'

bench-prepare: setup ## Measure filters and deduplication beside datatrove (BENCH_PREPARE_MB=300; reads installed distributions)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_prepare.py -s -q -o python_files='bench_*.py' -o timeout=7200

bench-gpu: ## Measure experts and training on one NVIDIA GPU with the torch of PYTHON (infra/gpu/build_megablocks.py)
	@$(PYTHON) tests/bench/bench_gpu.py

bench-train: setup ## Measure training steps beside transformers' Mixtral and DBRX, and dense twins (BENCH_TRAIN_SECONDS=60 a part)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_train.py -s -q -o python_files='bench_*.py'

bench-forecast: setup ## Forecast our own CPU recipes at 30x their proxies, then train them: hours (BENCH_FORECAST_QUICK=1: minutes)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_forecast.py -s -q -o python_files='bench_*.py'

kills: setup ## SIGKILL a training's worker, controller, stage and Ray head at random steps (KILLS=10 of each, SEED=1); the same model each time?
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_kills.py -s -q -o python_files='bench_*.py'

chaos: setup ## The whole job with something going wrong at random moments: trials SEED=1 to SEED+SEEDS-1 (CHAOS_OUT=FILE: a line of JSON each)
	@PYTHONPATH=. SEED=$(SEED) SEEDS=$(SEEDS) CHAOS_DAYS=2 $(bin)/python -m pytest tests/chaos -s -q

crowd: setup ## CROWD_DAYS=30 days, each asked for twice, at random, while models are built and the platform is stopped and started
	@PYTHONPATH=. SEED=$(SEED) $(bin)/python -m pytest tests/bench/bench_crowd.py -s -q -o python_files='bench_*.py' -o timeout=7200

bench-growth: setup ## What a step costs after 10 to 10,000 builds, 3 to 2,000 data days, 26 to 500 benchmarks (GROWTH_RUNS=10,100 and the like)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_growth.py -s -q -o python_files='bench_*.py' -o timeout=7200

soak: setup ## SOAK_RUNS=500 pipeline runs in a row: memory, files, databases, waiting times; and what `moeline gc --history` leaves
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_soak.py -s -q -o python_files='bench_*.py' -o timeout=86400

bench-page: setup ## Measure the page "Cost vs accuracy" over 10,000 builds (MOELINE_BENCH_RUNS=10000)
	@PYTHONPATH=. $(bin)/python -m pytest tests/bench/bench_page.py -s -q -o python_files='bench_*.py' -o timeout=1800

up: setup ## Start the platform
	@$(bin)/moeline up

down: ## Stop the platform
	@test ! -x $(bin)/moeline || $(bin)/moeline down

status: ## How every service is
	@$(bin)/moeline status

clean: down ## Remove what setup made; your data in .moeline stays
	@rm -rf .venv .uv .jars .oracles .pytest_cache .ruff_cache build
	@test ! -d .moeline || echo "Your tables, models and costs are still in .moeline; delete that folder yourself if you mean to."

sbom: setup ## Bill of materials (CycloneDX) and licence report into build/; fails on a licence nobody reviewed
	@PYTHONPATH=. $(bin)/python -m infra.supply.sbom

audit: setup ## Check the locked versions against a downloaded database of osv.dev, offline (OSV_DATABASE=all.zip)
	@PYTHONPATH=. OSV_DATABASE="$(OSV_DATABASE)" $(bin)/python -m infra.supply.audit

lock: setup ## Compile requirements.lock from pyproject.toml again (keeps what is pinned; UPGRADE=--upgrade for the newest)
	@.uv/bin/uv pip compile pyproject.toml --quiet --extra test --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" $(UPGRADE) -o requirements.lock
