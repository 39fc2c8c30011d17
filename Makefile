# The two commands of the README, and what the gate runs. Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: demo test lint docs faults clean

demo: $(VENV)/installed
	$(BIN)/lmkit pretrain demo
	@echo
	$(BIN)/lmkit generate runs/latest/best "It was a fine morning, and" --max-tokens 120 --temperature 0.5 --seed 1

test: $(VENV)/tested
	$(BIN)/python -m pytest -n 2 --dist loadfile

# kills, stops, damage, full disks, and what saving costs: about 20 minutes, for docs/reliability.md
faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py

# the site of the documentation, into build/site
docs: $(VENV)/tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy lmkit
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lmkit needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing lmkit and torch (about 200 MB; a minute or two)"
	$(PIP) --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) --requirement tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
