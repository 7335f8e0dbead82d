# make sample       draw scenes of the pretrained models, in ten seconds
# make fit          train and evaluate the demo; ARGS go to experiments/fit.py: make fit ARGS="--seed 1"
# make test         the tests; PYTEST_ARGS go to pytest: make test PYTEST_ARGS="-x tests/test_packaging.py"
# make test-slow    the slow tests
# make lint         ruff's checks and its format; make format applies both
# make clean        removes .venv, caches and build artefacts, never runs/ or data/
#
# The first target that needs it sets up .venv from pyproject.toml and constraints.txt.
#   PYTHON=python3.12    makes it with another Python (after `make clean` where one exists)
#   PIP_ARGS=...         goes to pip. The torch of the default index brings several GB of CUDA packages; without a GPU use
#                        make fit PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
ARGS ?=

VENV := .venv/bin/python
PRETRAINED := pretrained/lom-genesis-v2-objects-room-small pretrained/lom-genesis-v2-shapestacks-near-small
READY := .venv/.ready
PIP = $(VENV) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: sample fit test test-slow lint format clean

sample: $(READY)
	$(VENV) experiments/sample.py $(PRETRAINED)

fit: $(READY)
	$(VENV) experiments/fit.py $(ARGS)

# A process for each core, with one thread each
PYTEST := OMP_NUM_THREADS=1 $(VENV) -m pytest -n auto

test: $(READY)
	$(PYTEST) $(PYTEST_ARGS)

# pytest's exit code 5: nothing was collected
test-slow: $(READY)
	@$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS) \
	|| { code=$$?; [ $$code -eq 5 ] || exit $$code; echo "There are no slow tests to run."; }

lint: $(READY)
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .

format: $(READY)
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call require,CODE,MESSAGE) stops with one line and exit code 2 unless $(PYTHON) can run CODE
require = $(if $(shell $(PYTHON) -c '$(1)' >/dev/null 2>&1 && echo ok),,$(error $(2)))

$(READY): pyproject.toml constraints.txt
	$(call require,pass,'$(PYTHON)' does not run: install Python 3.11 or newer (sudo apt install python3 python3-venv) or name another (make PYTHON=python3.12 ...))
	$(call require,import sys; assert sys.version_info >= (3, 11),'$(PYTHON)' is older than Python 3.11: install a newer one and name it (make PYTHON=python3.12 ...))
	$(call require,import ensurepip; import venv,'$(PYTHON)' cannot make virtual environments (no ensurepip): install it (sudo apt install python3-venv))
	@rm -f $@
	@echo "Setting up .venv (once, a few minutes) ..."
	@$(VENV) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "  torch ..."
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "  everything else ..."
	@$(PIP) -e ".[dev]"
	@touch $@
