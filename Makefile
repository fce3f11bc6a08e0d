# The environment is .venv; `hooked` keeps TransformerLens at 3.x, where HookedTransformer is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(BIN)/lensplug
	$(BIN)/lensplug demo

test: $(BIN)/lensplug
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

lint: $(BIN)/lensplug
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lensplug

bench: $(BIN)/lensplug
	$(BIN)/python benchmarks/wrap.py
	$(BIN)/python benchmarks/light.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/listening.py
	$(BIN)/python benchmarks/pointing.py
	$(BIN)/python benchmarks/logit_lens.py
	$(BIN)/python benchmarks/flow.py
	$(BIN)/python benchmarks/exactness.py

$(BIN)/lensplug: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[hooked,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info lensplug-demo
