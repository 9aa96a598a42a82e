# `make` lists the targets. All of them but `clean` make the environment first if it is missing.

PYTHON ?= python3
VENV := .venv
OLDEST := .oldest
PEERS := .peers
BUILD := .build
DOCS := .docs
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-unit test-slow test-oldest lint format dist docs docs-serve docs-test notebooks benchmarks \
	benchmark-peers gpu-check clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

# The stamp tells whether what is installed is older than what is asked for.
$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev,examples,tfp]'
	touch $@

venv: $(VENV)/.stamp  ## Make the environment in .venv.

demo: venv  ## Train a small model on handwritten digits.
	$(BIN)/python examples/digits.py

# One after the other: TensorFlow keeps what XLA has compiled for as long as a process lives. No tests at all is 5.
GROUPS := "tests/bijectors tests/dynamics" "tests/gradients tests/loop" "tests/layers tests/test_[a-c]*.py" \
	"tests/checkpoints tests/events tests/methods tests/platform tests/steps" \
	"tests/examples tests/test_[d-z]*.py"
define in-groups
	@failed=0; for group in $(GROUPS); do \
	  $(1) -m pytest -n 2 --dist worksteal $(2) $$group; code=$$?; \
	  if [ $$code -ne 0 ] && [ $$code -ne 5 ]; then failed=1; fi; \
	done; exit $$failed
endef

test: venv  ## Run the tests, less those that take long.
	$(call in-groups,$(BIN)/python)

UNIT := methods steps checkpoints loop/test_integrate.py loop/test_outputs.py \
	test_architecture.py test_arithmetic.py test_config.py test_options.py test_solution.py

test-unit: venv  ## Run those tests that take little, of the parts that need no Keras.
	$(BIN)/python -m pytest -n 2 --dist worksteal $(UNIT:%=tests/%)

test-slow: venv  ## Run the tests that take long.
	$(call in-groups,$(BIN)/python,-m slow)

$(OLDEST)/.stamp: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -e '.[test]' -c tests/oldest.txt
	touch $@

test-oldest: $(OLDEST)/.stamp  ## Run the tests with the oldest TensorFlow and Keras that are supported.
	$(call in-groups,$(OLDEST)/bin/python)

lint: venv  ## Check the code's style and its types.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: venv  ## Format the code, and mend what can be mended automatically.
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

$(BUILD)/.stamp:
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install build twine
	touch $@

dist: $(BUILD)/.stamp  ## Build wheel and sdist twice, compare and check them, and try the wheel without extras.
	$(BUILD)/bin/python tools/check_dist.py

$(DOCS)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -e '.[docs]'
	touch $@

# Without messages of TensorFlow, and of the theme about its future.
MKDOCS := TF_CPP_MIN_LOG_LEVEL=3 NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs

SCHEMA := $(DOCS)/bin/check-jsonschema --builtin-schema vendor.

docs: $(DOCS)/.stamp  ## Build the site in site/; check spelling, workflows, links and anchors.
	$(DOCS)/bin/codespell
	$(SCHEMA)github-workflows .github/workflows/*.yml
	$(SCHEMA)github-issue-forms .github/ISSUE_TEMPLATE/*_re*.yml
	$(SCHEMA)github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA)citation-file-format CITATION.cff
	$(MKDOCS) build --strict
	$(DOCS)/bin/python tools/check_site.py site

notebooks: venv  ## Run the scripts that the site's notebooks are made of, and draw their pictures.
	$(BIN)/python tools/notebooks.py --run

docs-serve: $(DOCS)/.stamp  ## Serve the site at http://127.0.0.1:8000, built anew when a file changes.
	$(MKDOCS) serve

docs-test: docs  ## Open each page of the site in Chromium, on a desktop and on a phone.
	$(DOCS)/bin/python tools/check_in_browser.py --screenshots out/site

benchmarks: venv  ## Measure time, memory and exactness of the gradients.
	$(BIN)/python benchmarks/gradient_cost.py --modes graph XLA eager --output docs
	$(BIN)/python benchmarks/scaling.py --output docs
	$(BIN)/python benchmarks/exactness.py --output docs
	$(BIN)/python benchmarks/orders.py --output docs
	$(BIN)/python benchmarks/product_rate.py
	$(BIN)/python benchmarks/first_calls.py
	$(BIN)/python benchmarks/half_checkpoints.py
	$(BIN)/python benchmarks/flow.py --output docs

$(PEERS)/%/.stamp: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/python -m pip install -r $<
	touch $@

benchmark-peers: venv $(PEERS)/jax/.stamp $(PEERS)/torch/.stamp  ## Compare with diffrax, torchdiffeq and TFP.
	$(BIN)/python benchmarks/compare_peers.py --output docs
	$(BIN)/python benchmarks/outputs.py --output docs
	$(BIN)/python benchmarks/small.py --output docs
	$(BIN)/python benchmarks/per_example.py
	$(BIN)/python benchmarks/stiff.py --output docs
	$(BIN)/python benchmarks/reversible.py
	$(BIN)/python benchmarks/frontier.py --output docs

gpu-check: venv  ## On a machine with a GPU: the tests that matter there, and the tables, to docs/gpu.md.
	$(BIN)/python benchmarks/gpu_check.py --output docs

clean:  ## Remove the environment, caches and outputs.
	rm -rf $(VENV) $(OLDEST) $(PEERS) $(BUILD) $(DOCS) build dist site out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
