# Needs Python 3.11 or newer, git and make; everything else goes into .venv.
# A Python of your own choice: make test PYTHON=/path/to/python

PYTHON ?=
INSTALLED := .venv/.installed

.PHONY: help demo test check bench
.DEFAULT_GOAL := help
# Where other processes need the same cores, OpenMP threads that spin while they wait slow everyone several times over.
export OMP_WAIT_POLICY := PASSIVE

help:
	@echo "make demo   three teachers, a recipe, one student and its verdict: offline, under 5 minutes on two cores"
	@echo "make test   the tests (ARGS='-k fusion' picks some, ARGS='-m slow' runs the slow ones)"
	@echo "make check  ruff, import layers, docs, and a wheel that works when installed"
	@echo "make bench  one script per claim, printing ratios measured in one run (ARGS='--device cuda', ARGS=--quick)"

demo: $(INSTALLED)
	.venv/bin/hf-distill demo

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# The wheel is built from the sdist, compared with the source, and used from an empty folder.
check: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q tests/test_package.py tests/test_docs.py
	@set -e; root=$$(pwd); tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	.venv/bin/python -m build --no-isolation --outdir "$$tmp/dist" . > "$$tmp/log" 2>&1 || { cat "$$tmp/log"; exit 1; }; \
	.venv/bin/python -m pip install --quiet --no-index --no-deps --target "$$tmp/site" "$$tmp"/dist/*.whl; \
	diff -r --exclude=__pycache__ --exclude='.*' hf_distill "$$tmp/site/hf_distill"; \
	mkdir "$$tmp/empty"; cd "$$tmp/empty"; export PYTHONPATH="$$tmp/site"; \
	"$$root/.venv/bin/python" -c 'import sys, hf_distill; assert hf_distill.__file__.startswith(sys.argv[1]), hf_distill.__file__' "$$tmp/site"; \
	"$$root/.venv/bin/python" -m hf_distill --help > /dev/null; \
	cd "$$root"; echo "The wheel is complete: it imports and answers --help from an empty folder."

# Threads that spin while they wait would count as work, and on a busy machine take it from others.
bench: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,bench]'
	@set -e; for name in host_time cached_epoch live_step cache_build many_teachers memory end_to_end throughput finite_numbers; do \
	  .venv/bin/python "benchmarks/$$name.py" $(ARGS) 2> /dev/null || \
	  { echo "benchmarks/$$name.py failed: run it alone to see why." >&2; exit 1; }; done

# setuptools comes first, and at its pinned version, so that the editable install fetches no second one.
$(INSTALLED): pyproject.toml constraints.txt
	@set -e; if [ ! -x .venv/bin/python ]; then \
	  for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3) none; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then break; fi; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo "hf_distill needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2> /dev/null || echo none)." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; \
	  fi; \
	  "$$python" -m venv .venv || { rm -rf .venv; \
	    echo "$$python cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)." >&2; exit 1; }; \
	fi
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
