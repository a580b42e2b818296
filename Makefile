# Two commands from a fresh clone: `make demo` and `make test`. `make help` lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SPEC := pyproject.toml constraints.txt requirements.lock requirements-test.lock
ifeq ($(shell uname -sm),Linux x86_64)  # every file by its SHA-256
RUN = $(PIP) --require-hashes -r requirements.lock && $(OURS)
TEST = $(PIP) --require-hashes -r requirements-test.lock && $(OURS)
OURS = $(PIP) --no-deps --no-build-isolation -e .
else  # the same versions, without hashes
RUN = $(PIP) -c constraints.txt -e .
TEST = $(PIP) -c constraints.txt -e '.[test]'
endif
LOCK = uv pip compile pyproject.toml --quiet --universal --python-version 3.11 -c constraints.txt \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs trust faults case-study fix lock audit clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## train Phase 1 on the built-in model and clips, with score and verdict
	@$(BIN)/safe-train phase1 --backbone embedded --audio-encoder embedded --data synthetic

test: lint ## linters, types, import contract and the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test ## linters, types and import contract only
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; exit 1; }

docs: $(VENV)/.test ## the documentation as a site in build/docs; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

trust: $(VENV)/.test ## the long form of tests/trust: kills, full disks, damage, fuzzing, leaks (an hour or more; SHARE=0.1: a tenth)
	@$(PIP) -c constraints.txt 'atheris>=3' || echo "no atheris here: the fuzzing by coverage is left out"
	@SHARE=$(or $(SHARE),1) $(BIN)/python -m pytest -q -m trust tests/trust

faults: $(VENV)/.run ## plant every known fault and build every healthy set-up: what is found? (some minutes)
	@$(BIN)/python -m benchmarks.faults

case-study: $(VENV)/.run ## the runs of docs/case-study.md on DATA=FOLDER (five to ten CPU hours; goes on where it stopped)
	@test -d '$(DATA)/audio' || { echo "DATA=FOLDER is missing: recordings in AudioCaps layout \
	(docs/data.md), such as make case-study DATA=data/real-sounds" >&2; exit 2; }
	@$(BIN)/safe-train fetch smollm2 aisfx
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.case_study --data '$(DATA)' \
		--figure docs/case-study.png

fix: $(VENV)/.test ## repair what the linter and the formatter can
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

lock: ## write the hashes of what constraints.txt pins (needs uv)
	@$(LOCK) -o requirements.lock > /dev/null
	@$(LOCK) --extra test -o requirements-test.lock > /dev/null

audit: | $(BIN)/pip ## look up known weaknesses of what is pinned (asks a service on the network)
	@$(PYTHON) -m venv $(VENV)/audit  # of its own: what it needs is no requirement of ours
	@$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)/audit/bin/pip-audit --disable-pip --require-hashes -r requirements-test.lock

clean: ## remove the environment and the caches, but no run
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache

# The stamp files let a second call start at once; a changed requirement installs again.
$(VENV)/.run: $(SPEC) | $(BIN)/pip
	@echo "installing safe-probe into $(VENV) (6.5 GB and some minutes the first time, mostly torch)"
	@$(RUN)
	@touch $@

$(VENV)/.test: $(SPEC) | $(BIN)/pip
	@echo "installing safe-probe and its test tools into $(VENV) (6.5 GB and some minutes the first time)"
	@$(TEST)
	@touch $@ $(VENV)/.run

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else \
		f"safe-probe needs Python 3.11 or 3.12, and $(PYTHON) is {sys.version.split()[0]}; \
	try: make PYTHON=python3.11 demo")'
	@$(PYTHON) -m venv $(VENV)
