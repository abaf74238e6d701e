# Needs only python3 (3.11 or newer) and make. Everything lands in .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test files run in this many processes, each on one thread; the tests of one file stay together and in order.
JOBS ?= 2

.PHONY: setup quickstart test check lint format schema docs site notebooks bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)  ## the whole chain on the tiny carried LLaMA in 4 bits: SFT, reward model, rejection sampling, PPO, DPO; measured
	$(BIN)/python scripts/quickstart.py

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## what CI runs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(STAMP)  ## regenerate the committed JSON schema of the recipe language
	$(BIN)/python -m finetune.recipe.json_schema

docs: $(STAMP)  ## regenerate the pages of docs/reference that are made from the code
	$(BIN)/python scripts/docs.py

site: docs  ## build the site of docs/ into site/
	$(BIN)/mkdocs build --strict

notebooks: $(STAMP)  ## run the six notebooks on the carried model
	$(BIN)/python -m pytest tests/notebooks

bench: $(STAMP)
	$(BIN)/python tests/bench/sft_speed.py

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
