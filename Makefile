# `make demo` and `make test` are all the set-up there is: each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-text test test-slow coverage fuzz check docs tutorial screenshots install clean

demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/taskmerge demo --out .demo

demo-text: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/two_text_specialists.py --out .demo-text

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# lines and branches that the fast tests reach, the processes that they start among them
coverage: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage json --quiet -o - | $(BIN)/python tests/helpers/covered.py

# five thousand generated cases and more, fifty faults of each kind in every command that writes, two hundred kills: an hour
fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests:tests/helpers $(BIN)/python -m fuzz --cases 5500 --points 50 --kills 200

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation as a site that works from a disk: site/index.html
docs: $(VENV)/.installed
	$(BIN)/python -m taskmerge.recipes.docs docs
	$(BIN)/python -m taskmerge.cli.docs > docs/commands.md
	$(BIN)/python -m taskmerge.cli.json_docs > docs/json.md
	$(BIN)/zensical build --clean --strict

# run the tutorial's commands and write what they print, in the page and the notebook
tutorial: $(VENV)/.installed
	$(BIN)/python tests/helpers/executed_pages.py

# pictures of pages for the documentation, of the demo's models; needs Chromium
screenshots: $(VENV)/.installed
	$(BIN)/python benchmarks/screenshots.py --work .demo-pages

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) site .coverage* .cache .demo .demo-text .pytest_cache .mypy_cache .ruff_cache .hypothesis
