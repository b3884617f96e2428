VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml README.md $(shell find sparse_etrace datasets -name __pycache__ -prune -o -print)

.PHONY: demo test lint format clean

demo: $(VENV)/installed
	$(BIN)/sparse-etrace demo worm --out results

# The tests import the installed package: `pytest` puts no checkout on the path, `python -m pytest` would.
test: $(VENV)/installed-test
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) results dist

$(VENV)/made:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or later is needed; this is' "$$(python3 --version)" >&2; exit 1; }
	@python3 -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Could not make a virtual environment. On Debian its module is a package of its own: apt install python3-venv' >&2; \
		exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/made $(SOURCES)
	$(BIN)/python -m pip install .
	@touch $@

$(VENV)/installed-test: $(VENV)/made $(SOURCES)
	$(BIN)/python -m pip install '.[test]'
	@touch $(VENV)/installed $@
