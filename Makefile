# Two commands matter: `make demo` watches a model live its life; `make test` proves the code.
# Both build their own environment in .venv from the lock.

PY := .venv/bin/python
# where pip is told to look for wheels, such as builds without accelerators, there uv looks too
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
READY := .venv/.ready
AT_ONCE ?= 2

# bytecode is kept as it is first needed: compiling all of the environment ahead takes a minute
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test clusters lint docs bench lock clean
.DEFAULT_GOAL := help

help: ## show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements-dev.lock pyproject.toml
	@test -x $(PY) || python3 -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	@.venv/bin/uv pip sync --quiet --python $(PY) requirements-dev.lock
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $(READY)

demo: $(READY) ## play a year of real flights through the whole loop, then leave the server running
	@.venv/bin/modelkeep demo

# three at a time even on two cores: a quarter of the time they wait for processes, disks and each other
test: $(READY) ## every test but those on clusters; builds its own environment
	@.venv/bin/pytest -n 3 --dist worksteal -m "not cluster"

clusters: $(READY) ## the tests that start clusters of Ray, Dask and Spark; AT_ONCE=1: one after the other
	@.venv/bin/pytest -n $(AT_ONCE) --dist worksteal -m cluster

lint: $(READY) ## format, lint, types, the import contract, the length budget
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) tests/house.py

docs: $(READY) ## build the documentation into site/
	@$(PY) -m modelkeep.cli.reference docs/reference
	@.venv/bin/mkdocs build --strict

bench: $(READY) ## us and the peer side by side, ratios out
	@$(PY) -m benchmarks.overhead
	@$(PY) -m benchmarks.isolation
	@$(PY) -m benchmarks.serving
	@$(PY) -m benchmarks.serving_grpc
	@$(PY) -m benchmarks.tracking

lock: ## resolve the development environment anew
	@test -x $(PY) || python3 -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	@.venv/bin/uv pip compile --quiet --upgrade --extra postgres --extra flights --extra text --group dev --group docs --no-emit-index-url --no-emit-find-links \
	  --no-annotate --no-header --python-version 3.11 pyproject.toml -o requirements-dev.lock
	@sed -i 's/+cpu$$//' requirements-dev.lock

clean: ## forget the environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis site
