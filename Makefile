VENV := .venv
PYTHON := python3
BIN := $(VENV)/bin
SOURCES := Makefile pyproject.toml README.md $(shell find sparse_etrace native datasets -name __pycache__ -prune -o -print)

.PHONY: demo test short soak docs figures bench bench-gpu study bench-peers bench-nest bench-brian lint format clean

demo: $(VENV)/installed
	$(BIN)/sparse-etrace demo worm --out results

# The tests import the installed package: `pytest` puts no checkout on the path, `python -m pytest` would.
test: $(VENV)/installed-test
	BUILT=$(CURDIR)/build/wheel $(BIN)/pytest -n 2 --dist worksteal

# What some rules owe, on compiled kernels: `make short PYTHON=python3.13 VENV=.venv-newest` is for another Python.
short: $(VENV)/made build/wheel/made
	wheel=$$(ls build/wheel/*.whl) && \
		$(BIN)/python -m pip install "$$wheel" beartype hypothesis pandas pytest && \
		$(BIN)/python -m pip install --force-reinstall --no-deps "$$wheel"
	$(BIN)/pytest tests/test_conformance.py --full -k "test_laws and lif_cell and (D_RTRL or random)"

# The tests whose counts are small above, with their full ones.
soak: $(VENV)/installed-test
	$(BIN)/pytest -n 2 --dist worksteal -m soak --full -rA --jaxtyping-packages=sparse_etrace,beartype.beartype

# The pictures of docs/figures.md, by the code of that page.
figures: $(VENV)/installed-test
	$(BIN)/python docs/figures.py

bench: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/bench.py --out results
	$(BIN)/python tests/benchmarks/units.py --out results
	$(BIN)/python tests/benchmarks/activity.py --out results
	$(BIN)/python tests/benchmarks/delays.py --out results
	$(BIN)/python tests/benchmarks/graph.py --out results
	$(BIN)/python tests/benchmarks/files.py --out results
	$(BIN)/python tests/benchmarks/whole_fly.py --out results
	$(BIN)/python tests/benchmarks/events.py --out results
	$(BIN)/python tests/benchmarks/first_call.py --out results
	$(BIN)/python tests/benchmarks/updates.py --out results
	$(BIN)/python tests/benchmarks/scale.py
	$(BIN)/python tests/benchmarks/balanced.py --out results

# With the Python of a machine with a GPU, which may be offline: it says which wheels are missing.
bench-gpu:
	$(PYTHON) tests/benchmarks/gpu.py --out results

study: $(VENV)/installed-test
	$(BIN)/python tests/benchmarks/learners.py --out results
	$(BIN)/python tests/benchmarks/teacher.py --out results
	$(BIN)/python tests/benchmarks/match.py --out results
	$(BIN)/python tests/benchmarks/hour.py --out results

# The predecessor in an environment of its own, of Python 3.12 or later; nothing else here depends on it.
bench-peers:
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install . braintrace==0.2.8 brainevent==0.3.0 numba jax==0.12.0
	$(VENV)-peers/bin/python tests/benchmarks/peers.py --out results/peers.json
	$(VENV)-peers/bin/python tests/benchmarks/match_peer.py --out results

# The NEST simulator, likewise.
bench-nest:
	python3 -m venv $(VENV)-nest
	$(VENV)-nest/bin/python -m pip install . nest-simulator==3.10.0 pytest
	mkdir -p results
	$(VENV)-nest/bin/python tests/benchmarks/beside_nest.py --out results
	$(VENV)-nest/bin/python tests/benchmarks/nest_traces.py --out results

# Brian2, in an environment that has nothing of this library.
bench-brian: $(VENV)/installed-test
	python3 -m venv $(VENV)-brian
	$(VENV)-brian/bin/python -m pip install brian2==2.9.0
	$(BIN)/python tests/benchmarks/balanced.py --brian $(VENV)-brian/bin/python --out results
	$(BIN)/python tests/benchmarks/whole_fly.py --brian $(VENV)-brian/bin/python --out results

# Strict: a broken link, a page outside of the navigation or an unknown name in the reference fails.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-nest $(VENV)-brian $(VENV)-newest build results dist site

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or later is needed; this is' "$$($(PYTHON) --version)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Could not make a virtual environment. On Debian its module is a package of its own: apt install python3-venv' >&2; \
		exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/made $(SOURCES)
	$(BIN)/python -m pip install .
	@touch $@

# One environment for both builds, with CMake where the machine has none.
REQUIRED = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])

build/venv/made: pyproject.toml | $(VENV)/made
	$(BIN)/python -m venv --clear build/venv
	build/venv/bin/python -m pip install build $$($(BIN)/python -c '$(REQUIRED)'; command -v cmake > /dev/null || echo cmake ninja)
	@touch $@

# The sdist and, from it, one wheel for every Python: the kernels are called without Python's own interface.
build/wheel/made: $(SOURCES) build/venv/made
	rm -rf build/wheel
	build/venv/bin/python -m build --no-isolation --outdir build/wheel .
	@touch $@

# All that the tests and the pages need but the package itself, which may be built meanwhile: `make -j2`.
NEEDED = import tomllib; of = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	every = of["dependencies"] + sum(of["optional-dependencies"].values(), []); \
	print(*(line for line in every if not line.startswith(of["name"])), sep="\n")

$(VENV)/needed: pyproject.toml | $(VENV)/made
	$(BIN)/python -c '$(NEEDED)' > $(VENV)/needed.txt
	$(BIN)/python -m pip install -r $(VENV)/needed.txt
	@touch $@

$(VENV)/installed-test: $(VENV)/needed build/wheel/made
	$(BIN)/python -m pip install --force-reinstall --no-deps build/wheel/*.whl
	@touch $(VENV)/installed $@
