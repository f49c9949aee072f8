# Two commands matter: `make demo` and `make test`. Each makes .venv and installs what it needs.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check

.PHONY: demo test chromium tools lint check-types lock clean bench-ingest bench-router bench-assign bench-snapshot bench-reaction bench-pages screenshots calibrate

demo: $(VENV)/.installed
	$(BIN)/turnout demo

test: $(VENV)/.installed-dev chromium tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

# Tests of the pages take a browser. Where it cannot be had they are skipped, and the run says so.
CHROMIUM := /usr/bin/chromium
APT_GET := apt-get -qq -o=Dpkg::Use-Pty=0
chromium:
	@test -x $(CHROMIUM) || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& export DEBIAN_FRONTEND=noninteractive && timeout 100 $(APT_GET) update \
		&& $(APT_GET) install -y --no-install-recommends chromium fonts-noto-core > /dev/null; } \
		|| echo "No $(CHROMIUM), and none could be installed: tests in a browser will be skipped"

# nginx, HAProxy and Prometheus, for tests: fetched into $(VENV)/tools where the machine lacks them.
# Nothing is installed, so no daemon starts.
tools: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.tools

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

EXPERIMENTS ?= 10000
calibrate: $(VENV)/.installed
	$(BIN)/python -m bench.calibration --experiments $(EXPERIMENTS) --write README.md

EVENTS ?= 20000000
bench-ingest: $(VENV)/.installed
	$(BIN)/python -m bench.ingest --events $(EVENTS)

ROUNDS ?= 7
SECONDS ?= 3
PEERS := $(VENV)/peers
BENCH_ROUTER = $(BIN)/python -m bench.router --peers $(PEERS)/bin/python --rounds $(ROUNDS) --seconds $(SECONDS)
bench-router: $(VENV)/.installed $(PEERS)/.installed
	$(BENCH_ROUTER)

bench-assign: $(VENV)/.installed $(PEERS)/.installed
	$(BENCH_ROUTER) --in-process

bench-snapshot: $(VENV)/.installed
	$(BIN)/python -m bench.snapshot

DRILLS ?= 20
bench-reaction: $(VENV)/.installed
	$(BIN)/python -m bench.reaction --drills $(DRILLS)

bench-pages: $(VENV)/.installed-dev chromium
	$(BIN)/python -m bench.pages

# Of the three weeks of a shop's experiments that the tests look at, for the README.
screenshots: $(VENV)/.installed-dev chromium
	$(BIN)/python -m tests.e2e.browser.screenshots docs/screens

$(PEERS)/.installed: bench/peers/requirements.lock
	$(PYTHON) -m venv $(PEERS) || $(PYTHON) -m venv --without-pip $(PEERS)
	$(PYTHON) -m pip --python $(PEERS)/bin/python install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --require-hashes -r requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(PIP_INSTALL) --require-hashes -r requirements-dev.lock
	touch $@

# The locks name no index, so that each installation uses the index it is configured for.
UV_COMPILE = UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate
lock: | $(BIN)/python
	$(PIP_INSTALL) uv
	printf 'setuptools>=77\n' | $(UV_COMPILE) pyproject.toml - -o requirements.lock
	$(UV_COMPILE) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	$(UV_COMPILE) bench/peers/requirements.in -o bench/peers/requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
