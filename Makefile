PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
DOCS_READY := $(VENV)/.ready-docs

# Containers often set it: then each of the 60 processes of the tests compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test tests soak lint dashboard docs bench clean

run: $(RUN_READY)  ## profile this machine, plan, predict, run and compare; results in runs/latest
	$(BIN)/kvoverlap validate --device auto --out runs/latest

test: $(DEV_READY)  ## style, types, import arrows and every test, side by side: mypy uses one core
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(DEV_READY)  ## every test, the longest files first; three workers, because some tests wait
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

soak: lint  ## every property test with ten times the examples, other ones in every run
	KVOVERLAP_SOAK=10 $(BIN)/pytest -n 2 tests -k "not browser"

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dashboard: $(RUN_READY)  ## predicted against measured, in the browser
	$(BIN)/streamlit run dashboard

docs: $(DOCS_READY)  ## these pages as a web site in site/, with the help of every verb
	$(BIN)/mkdocs build --strict --quiet

bench: $(DEV_READY)  ## time the planner and the engine
	$(BIN)/pytest benchmarks --benchmark-only --override-ini 'python_files=bench_*.py'

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: use make PYTHON=python3 with Python 3.11, 3.12 or 3.13"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hw,dashboard,fast,sweep]'
	touch $@

$(DEV_READY): $(RUN_READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(DOCS_READY): $(RUN_READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
