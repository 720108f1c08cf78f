# One virtual environment for everything; `make serve` and `make test` set it up when it is missing or out of date.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# An idle OpenMP worker that spins costs whole scheduler quanta on a shared machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup serve test test-clients vllm-env test-vllm test-vllm-older check check-deploy bench soak overload docs site screenshots clean

setup: $(VENV)/.ready

# torch first and pinned: an open range would bring a CUDA build of several GB to a machine without a GPU.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench,browser,docs]'
	touch $@

TORCH ?= torch==2.13.0

serve: setup
	$(BIN)/decoding-server serve $(MODEL) --port $(or $(PORT),8000) $(ARGS)

# Two workers, whole files each: most tests keep one core busy, and a file's servers and models are started once.
WORKERS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

# Real clients against a running server, every one of them: they bring a hundred packages, so not into $(VENV). npm must
# be there.
CLIENTS_VENV ?= .venv-clients

test-clients: $(CLIENTS_VENV)/.ready
	DECODING_SERVER_TEST_CLIENTS=required $(CLIENTS_VENV)/bin/python -m pytest $(or $(ARGS),tests/clients)

$(CLIENTS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(CLIENTS_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --editable '.[dev,clients]'
	touch $@

# vLLM's CPU build brings its own versions of much, so it gets an environment of its own; see docs/vllm.md.
VLLM_VENV ?= .venv-vllm
VLLM_VERSION ?= 0.32.0

vllm-env: $(VLLM_VENV)/.ready

$(VLLM_VENV)/.ready: pyproject.toml .ci/vllm-env
	PYTHON=$(PYTHON) TORCH=$(TORCH) .ci/vllm-env $(VLLM_VENV) $(VLLM_VERSION)
	touch $@

test-vllm: $(VLLM_VENV)/.ready
	DECODING_SERVER_TEST_VLLM=required $(VLLM_VENV)/bin/python -m pytest $(or $(ARGS),tests/models/vllm_runtime)

# The oldest minor release that is supported, in an environment of its own: what touches vLLM's interfaces.
VLLM_OLDER ?= 0.31.0
OLDER_TESTS := $(patsubst %,tests/models/vllm_runtime/test_vllm_%.py,contract equality processors start)

test-vllm-older:
	$(MAKE) test-vllm VLLM_VENV=$(VLLM_VENV)-older VLLM_VERSION=$(VLLM_OLDER) ARGS="$(or $(ARGS),$(OLDER_TESTS))"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	@# Not --quiet: that would silence the warnings before --strict counts them.
	folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir "$$folder"

# Manifests, rules and dashboards with the tools that read them, the image's steps in a fresh folder, replicas behind a
# real router. promtool must be there (Debian: in the package prometheus).
check-deploy: setup
	$(BIN)/python -m pip install --quiet --editable '.[deploy]'
	DECODING_SERVER_TEST_DEPLOY=required $(BIN)/python -m pytest $(or $(ARGS),tests/deploy)

bench: setup
	$(BIN)/python -m decoding_server.bench --output $(or $(OUTPUT),build/bench) --write-docs $(ARGS)

soak: setup
	$(BIN)/python -m decoding_server.bench.soak --output $(or $(OUTPUT),build/soak) $(ARGS)

overload: setup
	$(BIN)/python -m decoding_server.bench.overload --output $(or $(OUTPUT),build/overload) $(ARGS)

docs: setup
	$(BIN)/python -m decoding_server.features --write

# The documentation as a site, in build/site.
site: setup
	$(BIN)/mkdocs build --strict

# Pictures for docs/playground.md; chromium must be there.
screenshots: setup
	$(BIN)/python tests/playground/screenshots.py

clean:
	rm -rf $(VENV) $(CLIENTS_VENV) $(VLLM_VENV) $(VLLM_VENV)-older build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
