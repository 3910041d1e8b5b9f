# The commands for people and for CI. Each target first sets up whatever it needs that is missing or stale. `make help`
# shows the targets that people type; the others are for CI and for maintainers (CONTRIBUTING.md).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test test-image test-supply test-stack test-cluster test-cluster-and-drill test-install test-wine lint bench \
	image up down demo drill drill-core shell programs doctor lock check-lock compose readable

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

help: ## show the targets that people type
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

run: .venv/ready model/model.json ## train, register and serve on http://localhost:8000, with a real PostgreSQL
	@$(BIN)/python -m tools run

# Two workers, each with a PostgreSQL and a trained model of its own; a module's tests run in one worker.
test: .venv/ready ## run all tests except those with a target of their own, with coverage
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest --numprocesses=2 --dist=loadscope \
		-m "not image and not supply and not cluster and not drill and not wine and not install and not stack"
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

# Build the serving image and test it running; needs root or docker.
test-image: .venv/ready
	@$(BIN)/pytest -m image

# Sign an image, write its SBOM, verify both, and refuse unsigned images; builds syft once.
test-supply: .venv/ready
	@$(BIN)/pytest -m supply

# Bring docker-compose.yml up on a Docker engine that the test starts; needs root.
test-stack: .venv/ready
	@$(BIN)/pytest -m stack

compose: .env ## start the whole stack in containers, at http://localhost:8000 (needs docker)
	@docker compose up --detach

# Without .venv: the stack in containers needs only Python on this machine.
.env: | readable
	@$(PYTHON) -m tools.compose

# The containers' users are not this one. They read what docker-compose.yml mounts, also if this user's umask is 077.
readable:
	@chmod -R go+rX monitoring tools/databases.sh $(wildcard .local/secrets/alertmanager)

up: .venv/ready ## start a real Kubernetes on this machine (needs root; builds its programs once, about 25 min)
	@$(BIN)/python -m tools.cluster up

down: .venv/ready ## stop the cluster and remove everything that it created
	@$(BIN)/python -m tools.cluster down

demo: up ## ship a good model and a bad image by commit; the bad image is rolled back; ends with a report
	@$(BIN)/python -m tools.drill demo

drill: up ## play every way in which a release can go, and show how each ended (more than an hour)
	@$(BIN)/python -m tools.drill run

# Play the five scenarios that CI plays, then stop the cluster.
drill-core: up
	@trap '$(BIN)/python -m tools.cluster down' EXIT; $(BIN)/python -m tools.drill run --core

shell: .venv/ready ## open a shell in the cluster, with kubectl and the other programs
	@$(BIN)/python -m tools.cluster exec -- bash

# Build every pinned program once.
programs: .venv/ready
	@$(BIN)/python -m tools.cluster build

doctor: .venv/ready ## check that this machine has what the cluster needs, and say how to fix what is missing
	@$(BIN)/python -m tools.cluster doctor

# Start a cluster, test it, and test that `down` leaves nothing; needs root.
test-cluster: .venv/ready
	@$(BIN)/pytest -m cluster

# The same, and play the five scenarios of drill-core in that cluster: one start instead of two.
test-cluster-and-drill: .venv/ready
	@$(BIN)/pytest -m "cluster or drill"

# Follow docs/OPERATIONS.md from an empty Kubernetes to a first release; needs root.
test-install: .venv/ready
	@$(BIN)/pytest -m install

# Promote a model of another data set in a cluster, as docs/BRING-YOUR-OWN-MODEL.md says; needs root, about 10 min.
test-wine: .venv/ready
	@$(BIN)/pytest -m wine

lint: .venv/ready ## check format, style, types, locks, YAML, shell, Dockerfiles, workflows and documents
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/hadolint Dockerfile */Dockerfile tools/drill/faults/Dockerfile tools/cluster/dockerfiles/*
	$(BIN)/zizmor --offline --quiet --persona=pedantic .github
	$$($(BIN)/python -m tools.cluster build actionlint)/actionlint -shellcheck=$(BIN)/shellcheck
	$(BIN)/pytest -q tests/test_documents.py -k "block or drill_plays or target or link or path"
	@$(MAKE) --no-print-directory check-lock

bench: .venv/ready model/model.json ## measure the service against bare uvicorn (needs wrk)
	@$(BIN)/python -m tools bench

image: .venv/ready model/model.json ## build the serving image, with docker or buildah
	@$(BIN)/python -m tools image

lock: .venv/ready ## write the lock files from pyproject.toml (UPGRADE=--upgrade takes newer versions)
	$(LOCK_ALL) $(UPGRADE) --output-file requirements.txt
	$(LOCK_SERVICE) --output-file service/requirements.txt
	$(LOCK_PIPELINE) --output-file pipeline/requirements.txt
	$(LOCK_TOOLS) --output-file tools/requirements.txt

# Fail unless the locks follow from pyproject.toml: compiled again, they come out unchanged.
check-lock: .venv/ready
	@mkdir -p .local/lock/{.,service,pipeline,tools}
	@for lock in {,service/,pipeline/,tools/}requirements.txt; do cp $$lock .local/lock/$$lock; done
	@$(LOCK_ALL) --output-file .local/lock/requirements.txt
	@$(LOCK_SERVICE) --output-file .local/lock/service/requirements.txt
	@$(LOCK_PIPELINE) --output-file .local/lock/pipeline/requirements.txt
	@$(LOCK_TOOLS) --output-file .local/lock/tools/requirements.txt
	@for lock in {,service/,pipeline/,tools/}requirements.txt; do diff $$lock .local/lock/$$lock \
		|| { echo "the locks do not follow from pyproject.toml; run: make lock" >&2; exit 1; }; done

# A virtual environment has its path in its programs, so a checkout that was moved makes it anew.
ifeq (,$(findstring --clear $(realpath .venv),$(file < .venv/pyvenv.cfg)))
.PHONY: .venv/ready
endif

# Install everything by hash with uv, which is itself installed from the lock: 22 s where pip needs 70.
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
