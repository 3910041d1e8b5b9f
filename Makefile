# The one command surface for people and CI: each target sets up what it needs, and only what is stale.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test test-image test-supply test-stack test-cluster test-install test-wine lint bench image up down demo drill \
	drill-core shell programs doctor lock check-lock compose

PYTHON ?= python3
BIN := .venv/bin
CODE := service pipeline delivery tools manifests tests
SHELL_SCRIPTS := .ci/run tools/cluster/node.sh tools/cluster/postgres-entrypoint.sh tools/databases.sh
LOCK := $(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --no-annotate \
	--custom-compile-command "make lock"
LOCK_ALL := $(LOCK) pyproject.toml --group pipeline --group tools --group test --group lint
LOCK_SERVICE := $(LOCK) pyproject.toml --constraints requirements.txt
LOCK_PIPELINE := $(LOCK) --group pipeline --constraints requirements.txt
LOCK_TOOLS := $(LOCK) --group programs

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

run: .venv/ready model/model.json ## train, register and serve on http://localhost:8000, with a real PostgreSQL
	@$(BIN)/python -m tools run

test: .venv/ready ## run every test but those with a target of their own, with coverage
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -m "not image and not supply and not cluster and not wine and not install and not stack"
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

test-image: .venv/ready ## build the serving image and test it running (needs root or docker)
	@$(BIN)/pytest -m image

test-supply: .venv/ready ## sign an image, list its parts, tell it from unsigned ones (builds syft once)
	@$(BIN)/pytest -m supply

test-stack: .venv/ready ## bring docker-compose.yml up on a Docker engine of its own (needs root; waits 7 min for an alert)
	@$(BIN)/pytest -m stack

compose: .env ## the whole stack in containers, at http://localhost:8000 (needs docker)
	@docker compose up --detach

# Without .venv: for a stack in containers a machine needs Python and nothing of it.
.env:
	@$(PYTHON) -m tools.compose

up: .venv/ready ## start a real Kubernetes on this machine (needs root; builds its programs once, about 25 min)
	@$(BIN)/python -m tools.cluster up

down: .venv/ready ## end it, and leave nothing
	@$(BIN)/python -m tools.cluster down

demo: up ## ship a good model and a bad image by commit, and watch the bad one come back; ends in a report
	@$(BIN)/python -m tools.drill demo

drill: up ## play every way in which a release can go, and show what became of each (more than an hour)
	@$(BIN)/python -m tools.drill run

drill-core: up ## play the five that CI plays, from nothing to nothing
	@trap '$(BIN)/python -m tools.cluster down' EXIT; $(BIN)/python -m tools.drill run --core

shell: .venv/ready ## a shell in it, with kubectl and the rest
	@$(BIN)/python -m tools.cluster exec -- bash

programs: .venv/ready ## build every program that is pinned here, once
	@$(BIN)/python -m tools.cluster build

doctor: .venv/ready ## what the cluster needs of this machine, and how to fix what is missing
	@$(BIN)/python -m tools.cluster doctor

test-cluster: .venv/ready ## test the cluster, from nothing to nothing (needs root)
	@$(BIN)/pytest -m cluster

test-install: .venv/ready ## follow docs/OPERATIONS.md from an empty Kubernetes to a first release (needs root)
	@$(BIN)/pytest -m install

test-wine: .venv/ready ## have a model of another data set promoted, as its document says (needs root; about 10 min)
	@$(BIN)/pytest -m wine

lint: .venv/ready ## check format, style, types, locks, YAML, shell, Dockerfiles, workflows and documents
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/hadolint Dockerfile */Dockerfile tools/drill/faults/Dockerfile
	$(BIN)/zizmor --offline --quiet --persona=pedantic .github
	$$($(BIN)/python -m tools.cluster build actionlint)/actionlint -shellcheck=$(BIN)/shellcheck
	$(BIN)/pytest -q tests/test_documents.py -k "block or drill_plays or target or link or path"
	@$(MAKE) --no-print-directory check-lock

bench: .venv/ready model/model.json ## measure the service against bare uvicorn (needs wrk)
	@command -v wrk > /dev/null || { test "$$(id -u)" = 0 && apt-get install --yes wrk; } || true
	@$(BIN)/python -m tools.bench

image: .venv/ready model/model.json ## build the serving image, with docker or buildah
	@$(BIN)/python -m tools image

lock: .venv/ready ## write the lock files anew from pyproject.toml (UPGRADE=--upgrade takes newer versions)
	$(LOCK_ALL) $(UPGRADE) --output-file requirements.txt
	$(LOCK_SERVICE) --output-file service/requirements.txt
	$(LOCK_PIPELINE) --output-file pipeline/requirements.txt
	$(LOCK_TOOLS) --output-file tools/requirements.txt

# Locks that are current come out of their own sources unchanged.
check-lock: .venv/ready
	@mkdir -p .local/lock/{.,service,pipeline,tools}
	@for lock in {,service/,pipeline/,tools/}requirements.txt; do cp $$lock .local/lock/$$lock; done
	@$(LOCK_ALL) --output-file .local/lock/requirements.txt
	@$(LOCK_SERVICE) --output-file .local/lock/service/requirements.txt
	@$(LOCK_PIPELINE) --output-file .local/lock/pipeline/requirements.txt
	@$(LOCK_TOOLS) --output-file .local/lock/tools/requirements.txt
	@for lock in {,service/,pipeline/,tools/}requirements.txt; do diff $$lock .local/lock/$$lock \
		|| { echo "the locks do not follow from pyproject.toml; run: make lock" >&2; exit 1; }; done

# Everything at once and by hash, with uv, which is itself taken from the lock: 22 s where pip needs 70.
.venv/ready: requirements.txt
	@echo "setting up .venv"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 15) else \
		f"Python 3.11 to 3.14 is needed, this is {v.major}.{v.minor}; name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear .venv || { echo "no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement <(sed -n '/^uv==/,/[^\\]$$/p' requirements.txt)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes requirements.txt
	@touch $@

model/model.json: .venv/ready $(wildcard pipeline/*.py)
	@$(BIN)/python -m pipeline
