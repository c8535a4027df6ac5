# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-output
BENCH := build/bench-venv
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help setup demo check test test-trainers images test-images system chaos soak bench bench-scoring bench-scale bench-efficacy bench-noise audit lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready ## Make .venv with curator, the engines and a small real model

# torch first and with its dependencies, so that each machine gets the build that suits it; the rest exactly as locked.
$(VENV)/ready: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "curator needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	grep -v '^torch==' requirements.lock > $(VENV)/rest.lock
	$(BIN)/pip install --quiet --no-deps -r $(VENV)/rest.lock
	rm -rf token_curator.egg-info
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup ## Train a reference, score real text, keep 60% of its tokens, write dataset and report
	$(BIN)/python examples/demo/run.py $(DEMO)

check: setup ## Lint, types and quick tests, about three minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test: check system ## Everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow and not alone"
	$(BIN)/pytest -m "slow and alone and not images"

test-trainers: setup ## Train a canary with each real trainer, one environment each; TRAINERS="olmo_core tinker"
	bash tests/trainers/run.sh $(BIN)/python $(TRAINERS)

images: ## Build the images of the service and its CPU workers; PYTHON_IMAGE, PIP_OPTIONS: docs/deployment.md
	docker/build.sh service
	docker/build.sh worker-cpu

test-images: setup images ## Run them: hardened, then a cluster whose worker dies; `make test` has no docker and leaves it out
	PYTHON=$(CURDIR)/$(BIN)/python tests/deploy/standins/build.sh
	$(BIN)/pytest -m images tests/deploy

system: ## What tests need from Debian, where it is not there yet: a browser, nginx, Prometheus, a C compiler, ip
	sh tests/system.sh

chaos: setup ## The short form of all fault tests: kills, lost nodes, files, power, stores, bad input
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults tests/service/faults tests/test_cluster.py

soak: setup ## Their long form, hours; kills and lost nodes go on where they were left (build/chaos/)
	sh tests/system.sh soak
	OMP_NUM_THREADS=1 CURATOR_SOAK=1 $(BIN)/pytest tests/faults tests/service/faults tests/service/test_openapi.py \
		tests/test_interrupts.py tests/deploy/test_slurm.py tests/deploy/test_raylets.py

bench: bench-scoring bench-scale ## Measure speed, memory and size; figures go to benchmarks/results/
	for name in selection storage_size memory losses downloads service_load; do $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-scale: setup ## What the driver costs, 10 to 10,000 shards; SCALE="--shards 100000 --sections publish", 25 minutes and 3 GB
	$(BIN)/python benchmarks/scale.py $(SCALE)

bench-efficacy: setup ## Do the weights help? Rho-1 in small; FULL=--full for all arms, SIZE=124m on a GPU
	$(BIN)/python benchmarks/efficacy/run.py --size $(or $(SIZE),4m) $(FULL)

bench-noise: setup ## Which token scores find noise? AUROC by policy and kind; MODELS=smollm2
	$(BIN)/python benchmarks/efficacy/noise.py --models $(or $(MODELS),4m)

bench-scoring: setup $(BENCH)/ready ## Our scorers beside other ways to score, 18 minutes; SCORING="--sections limit"
	$(BIN)/python benchmarks/scoring.py --harness $(BENCH)/bin/python $(SCORING)

# A peer of the benchmark, with this project's torch; without it the table has a row less.
$(BENCH)/ready: $(VENV)/ready
	$(BIN)/python -m venv --clear $(BENCH)
	cd $(VENV)/lib/python3*/site-packages && pwd > $(CURDIR)/$(BENCH)/project.pth
	mv $(BENCH)/project.pth $(BENCH)/lib/python3*/site-packages/
	$(BENCH)/bin/pip install --quiet --no-warn-conflicts -c requirements.lock lm-eval==0.4.13 && touch $@ || \
		echo "lm-eval cannot be installed: its row is left out"

audit: setup ## Known vulnerabilities, dangerous code, workflows, licences
	$(BIN)/python tests/upkeep/audit.py

lock: setup ## Write requirements.lock from what .venv holds
	$(BIN)/pip freeze --all --exclude-editable | grep -v "^pip==" | sed -E 's/^(torch==[^+]*)\+.*/\1/' > requirements.lock

clean: ## Remove what the targets above made
	rm -rf $(VENV) $(DEMO) build *.egg-info
