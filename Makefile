# Two commands do everything on a machine that has Python 3.11+ and git:
#   make demo   makes .venv, installs, segments an image by text with the embedded model
#   make test   installs the test tools too and runs the whole suite
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs format bench clean

demo: $(VENV)/.installed
	$(BIN)/diffuseg demo --output out/demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/record.py
	$(BIN)/python benchmarks/segment.py
	$(BIN)/python benchmarks/encode.py

clean:
	rm -rf $(VENV) out site

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.py
	$(PYTHON) scripts/install.py --venv $(VENV)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PYTHON) scripts/install.py --venv $(VENV) --group dev
	touch $@
