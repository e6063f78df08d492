# Two commands for a newcomer: `make run` starts a node, `make test` checks everything.
# ARGS passes options on: `make run ARGS=--no-discovery`, `make demo ARGS=--once`, `make test ARGS='-k trust'`.

PATH := $(or $(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
export PATH
SHELL := /bin/sh
PYTHON_IN_VENV := .venv/bin/python
# A file's tests stay together, and the files keep their order: those that start nodes come first and fill the waiting of others.
PYTEST := $(PYTHON_IN_VENV) -m pytest -n auto --dist loadfile --no-loadscope-reorder
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run demo test test-deps test-long lint venv venv-dev

help:
	@echo "make run        prepare everything that is missing, then start this node"
	@echo "make demo       three nodes on this machine that exchange knowledge (ARGS=--once ends by itself)"
	@echo "make test       lint and every test, as CI runs them"
	@echo "make test-deps  install what some tests need from Debian (as root)"
	@echo "make test-long  the long tests, up to an hour"
	@echo "make lint       formatting, types, layers and migrations only"

venv:
	@scripts/venv.sh run

venv-dev:
	@scripts/venv.sh dev

# `exec`: the node is make's own child, so that Ctrl-C and SIGTERM reach it and it drains before make ends.
run: venv
	@$(PYTHON_IN_VENV) manage.py bootstrap
	@exec $(PYTHON_IN_VENV) manage.py runfederation $(ARGS)

demo: venv
	@exec $(PYTHON_IN_VENV) scripts/demo.py $(ARGS)

# A throwaway ARK_HOME: neither mypy's Django plugin nor makemigrations may touch the operator's node.
lint: venv-dev
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && export ARK_HOME="$$home" ARK_ENV_FILE=/dev/null && \
	.venv/bin/ruff check . && \
	.venv/bin/ruff format --check . && \
	.venv/bin/mypy arklattice federation keys peers && \
	.venv/bin/lint-imports && \
	$(PYTHON_IN_VENV) manage.py makemigrations --check --dry-run

# Twice what the database decides: on SQLite with everything else, then on a PostgreSQL server of its own.
test: lint
	@$(PYTEST) $(ARGS)
	@exec $(PYTHON_IN_VENV) -m tests.postgres $(PYTEST) --database $(ARGS)

test-deps:
	@scripts/test-deps.sh

test-long: venv-dev
	@exec $(PYTEST) --long $(ARGS)
