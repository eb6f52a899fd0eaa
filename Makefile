# FedHelp. `make` alone prints this help. Needs Python 3.11+, make and git; everything else is set up under .uv, .venv and .cache.
UV_VERSION := 0.13.9
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.uv/bin/uv)
RUN := $(UV) run --frozen --no-sync
DEMO ?= demo
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
ifdef DATA  # a folder of real images, for the tests that take some (tests/core/data/test_real_files.py says what it holds)
export FEDHELP_REALDATA := $(abspath $(DATA))
endif

.PHONY: help reproduce setup run simulate simulate-tasks simulate-steps test test-long test-all test-cluster kills attack coverage check charts docs docs-serve format bench bench-peers fuzz-files images requirements cluster cluster-down e2e clean

##@ Use
run: setup ## The whole pipeline on this machine: six drawn hospitals, a report at the end (about a minute, four the first time)
	@$(RUN) fedhelp run --demo $(DEMO)

TABLE := --set algorithm.rounds=20 --set algorithm.public_start_steps=0  # docs/results.md
simulate: setup ## Compare all methods over five seeds on the demo's data: table, figure, CSV under study/ (long)
	@$(RUN) fedhelp simulate --demo $(DEMO) $(TABLE) --out study

TASKS ?= pneumonia lung-segmentation brain-segmentation
COMPARED := --methods local,fedavg,fedprox,fedhelp,fedhelp-no-api --normalisation shared,silo --seeds 1,2,3 --evaluate-every 4
simulate-tasks: setup ## The other tasks' small tables (docs/reproduce) under study/TASK, on drawn data (TASKS=...; a few minutes a task)
	@$(foreach task,$(TASKS),$(RUN) fedhelp data phantom $(task) examples/data/$(task)-small && \
	  $(RUN) fedhelp simulate examples/$(task)-small.yaml $(COMPARED) --out study/$(task) &&) true

EQUAL_STEPS := --methods local,fedavg --normalisation shared,silo --set algorithm.local_epochs=9 --evaluate-every 0
simulate-steps: setup ## FedAvg with as many optimizer steps as FedHelp takes (nine local epochs), for all tasks, under study/TASK-steps (long)
	@$(RUN) fedhelp simulate --demo $(DEMO) $(TABLE) $(EQUAL_STEPS) --out study/melanoma-steps
	@$(foreach task,$(TASKS),$(RUN) fedhelp data phantom $(task) examples/data/$(task)-small && \
	  $(RUN) fedhelp simulate examples/$(task)-small.yaml $(EQUAL_STEPS) --seeds 1,2,3 --out study/$(task)-steps &&) true

##@ Develop
TEST_PROCESSES ?= 2
PYTEST := pytest tests --ignore tests/cluster -n $(TEST_PROCESSES) --dist worksteal --slowest 20 $(if $(ORDER),--shuffle $(ORDER))
test: setup check ## Lint, types, layers, then all tests but the longest (minutes; ORDER=any: in random order; DATA=<folder>: real images too)
	@$(RUN) python tests/cluster/build.py helm >/dev/null
	@$(RUN) $(PYTEST) -m "not e2e and not long and not kills"

test-long: setup ## Whole demos, every task and method in every way, other people's model servers (some minutes more; ORDER=any)
	@$(RUN) $(PYTEST) -m "long and not e2e"

test-all: ## test, test-long, docs, test-cluster and e2e (Linux, root, Debian's packages; about an hour, with Kubernetes built from source)
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory --keep-going test-long docs test-cluster e2e

kills: setup ## Twenty kill -9s at random moments end in the same model (some ten minutes)
	@$(RUN) pytest tests/components/test_kill.py

ATTACK_LIMIT ?= 890  # seconds: a suite that takes longer is not run
attack: setup ## Attacks on documents, weights, stores and files, and a table of what came through (below fifteen minutes)
	@timeout $(ATTACK_LIMIT) $(RUN) pytest tests/attack -m attack -q

coverage: setup ## Lines and branches that tests without processes of their own reach (a quarter slower than without)
	@$(RUN) pytest tests --ignore tests/cluster -m "not slow and not attack and not e2e" -n $(TEST_PROCESSES) --cov --cov-report=term

test-cluster: setup ## The tests on a real Kubernetes API server, which is built first, once (a quarter of an hour on idle cores)
	@$(RUN) python tests/cluster/build.py --control-plane >/dev/null
	@$(RUN) pytest tests/cluster -m "not e2e" -v

check: setup .cache/mypy ## The static part: ruff, mypy, import-linter, lock file
	@$(UV) lock --check --quiet
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache

charts: setup ## Make what is generated: the charts' README tables, pipelines and schema, docs/configuration.md
	@$(RUN) python helm/generate.py
	@$(RUN) python docs/configuration.py

DOCS := UV_PROJECT_ENVIRONMENT=$(CURDIR)/.cache/docs NO_MKDOCS_2_WARNING=1 $(UV) run --frozen --only-group docs --quiet
docs: setup .cache/mypy ## The documentation site under build/site; a dead link or a wrong docstring is an error (half a minute)
	@$(DOCS) mkdocs build --strict
	@echo "build/site/index.html"

docs-serve: setup .cache/mypy ## The same at http://localhost:8000, built again whenever a page changes
	@$(DOCS) mkdocs serve

format: setup ## Sort imports and apply ruff's safe fixes
	@$(RUN) ruff check --fix .

FUZZ_FILES ?= 10000
fuzz-files: setup ## Files of every format with bytes changed: refused or read rightly (FUZZ_FILES=...; some five minutes)
	@$(RUN) python -m tests.core.data.mutations --count $(FUZZ_FILES)

OUT ?= build/reproduce
reproduce: setup ## The compared methods on real images: DATA=folder of the sets (docs/reproduce); resumable, hours (ONLY=pneumonia, SEEDS=1,2)
	@test -n "$(DATA)" || { echo "make reproduce: DATA=<folder of the real sets> expected; docs/reproduce/real-images.md says which they are"; exit 10; }
	@$(UV) run --frozen --group reproduce python -m benchmarks.reproduce "$(DATA)" --out "$(OUT)" $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(NATURAL),--natural "$(NATURAL)")

bench: setup ## The figures of docs/benchmarks.md, side by side with their yardsticks
	@$(RUN) python -m benchmarks

bench-peers: setup ## The same round-time measurement for NVFLARE and Flower, in environments of their own
	@$(RUN) python -m benchmarks --peers

##@ Images
images: ## Build fedhelp/hub and fedhelp/silo (BASE_IMAGE, IMAGE_REPOSITORY, VERSION, CUDA=no with TORCH_INDEX; images/README.md)
	@images/build.sh

requirements: setup ## Write what the images install, from uv.lock
	@$(RUN) python images/requirements.py

##@ Kubernetes
GRADE ?= 2
cluster: setup ## A real Kubernetes on this machine (GRADE=2: with a node, needs root; GRADE=1: the control plane)
	@$(RUN) python -m tests.cluster up --grade $(GRADE)

cluster-down: setup ## End it and remove its traces
	@$(RUN) python -m tests.cluster down

e2e: setup ## Hospitals on a real Kubernetes node with real images (Linux, root, Debian's packages)
	@$(RUN) python tests/cluster/build.py --all >/dev/null
	@$(RUN) pytest tests -m e2e -v

##@ House
setup: .cache/setup-done ## Make the environment (uv, locked dependencies)

.cache/setup-done: pyproject.toml uv.lock
	@mkdir -p .cache
	@if ! [ -x "$(UV)" ] && ! command -v "$(UV)" >/dev/null; then \
	  echo "setting up uv $(UV_VERSION) under .uv"; \
	  $(PYTHON) -m venv .uv || { echo "error: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv), or uv"; exit 1; }; \
	  .uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	fi
	@echo "setting up .venv from uv.lock (PyTorch is large: a minute or more the first time)"
	@$(UV) sync --frozen --quiet --compile-bytecode  # else each process compiles PyTorch anew where PYTHONDONTWRITEBYTECODE is set
	@touch $@

.cache/mypy:
	@mkdir -p $@
	@ln -sfn ../../fedhelp_core $@/fedhelp_core
	@ln -sfn ../../dispatch $@/fedhelp_dispatch
	@ln -sfn ../../components $@/fedhelp_components
	@ln -sfn ../../pipelines $@/fedhelp_pipelines
	@ln -sfn ../../cli $@/fedhelp_cli

clean: ## Remove what make made, but for the demo's input and results
	@rm -rf .venv .uv .cache build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache

help: ## This help
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*##/ {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
