# `make help` lists the targets. PYTHON chooses the interpreter that makes the environment;
# VENV=none uses the packages of PY (default: PYTHON) as they are, and installs nothing.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2
EXTRAS := experiments,test,dev
WHEEL := .cache/wheel

ifeq ($(VENV),none)
PY ?= $(PYTHON)
INSTALLED :=
else
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
endif

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-oldest test-newest test-fuzz test-gpu bench bench_forward bench_sweep study lint types docs clean
.PHONY: penguins drmad_study drmad_study_long forward_gradient_cnn forward_reverse hyper_cleaning
.PHONY: usps_backprop optimizers

help:  ## List the targets
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## (.*)/\1\t\2/' | expand -t 22

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "hgrad_jax needs Python 3.11 or newer, but PYTHON=$(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo 'not there'):" \
	    "name another with 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

run: $(INSTALLED)  ## Tune the digits classifier's hyperparameters by their gradients (ARGS=...)
	$(PY) -m experiments.tune_digits $(ARGS)

# First what holds of any code, compiled fast; then what is claimed of the code that users get.
test: $(INSTALLED)  ## Run the tests and the doctests
	@XLA_FLAGS="$$($(PY) -m tests.quick_flags) $$XLA_FLAGS" \
	  $(PY) -m pytest -n $(WORKERS) -m "not slow and not fuzz and not compiled" $(ARGS); first=$$?; \
	$(PY) -m pytest -n $(WORKERS) -m "compiled and not slow" $(ARGS); second=$$?; \
	case "$$first $$second" in "0 0"|"0 5"|"5 0") ;; *) exit 1 ;; esac  # 5: ARGS choose none

test-slow: $(INSTALLED)  ## Run the tests marked slow
	$(PY) -m pytest -m slow $(ARGS)

# A smoke set in an environment of its own; $(1) names it, $(2) says which versions.
SMOKE := tests/test_run.py tests/test_hypergradient.py tests/test_face.py tests/tools \
  tests/exact/test_runtime_flags.py tests/training/test_checkpoints.py tests/data
define smoke
	rm -rf .cache/$(1) && $(PYTHON) -m venv .cache/$(1)
	.cache/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' $(2)
	.cache/$(1)/bin/python -m pip list 2>/dev/null | grep -E '^(jax|flax|optax|orbax-checkpoint|numpy) '
	.cache/$(1)/bin/python -m pytest -q -n $(WORKERS) -m "not slow and not fuzz" \
	  -W ignore::DeprecationWarning $(SMOKE) $(ARGS)
endef

test-oldest:  ## Run a smoke set on the oldest versions that are allowed
	mkdir -p .cache && $(PYTHON) -m tests.oldest_versions > .cache/oldest.txt
	$(call smoke,oldest,-c .cache/oldest.txt)

test-newest:  ## Run a smoke set on the newest versions that are allowed
	$(call smoke,newest)

test-fuzz: $(INSTALLED)  ## Call everything public with odd arguments, one at a time
	$(PY) -m pytest -m fuzz -s tests/fuzz/test_fuzz.py $(ARGS)

# Without deterministic scatters and reductions a run cannot be reversed bit for bit on a GPU.
test-gpu: override export XLA_FLAGS += --xla_gpu_deterministic_ops=true
test-gpu: $(INSTALLED)  ## Run the tests marked gpu and a short benchmark, if there is an accelerator
	@backend=$$($(PY) -c 'import jax; print(jax.default_backend())') || exit 1; \
	if [ "$$backend" = cpu ]; then \
	  echo "JAX sees no accelerator here: nothing was tested."; \
	else \
	  $(PY) -m pytest -m gpu $(ARGS) && $(PY) -m experiments.bench --quick; \
	fi

bench_forward: $(INSTALLED)  ## Time forward gradients beside backpropagation
	$(PY) -m experiments.$@ $(ARGS)

bench: $(INSTALLED)  ## Measure time and memory against rivals (ARGS=...)
	$(PY) -m experiments.bench $(ARGS)

study: $(INSTALLED)  ## Compare approximate hypergradients with exact ones (ARGS=...)
	$(PY) -m experiments.approximations $(ARGS)

bench_sweep: $(INSTALLED)  ## Time a sweep beside the same runs one after the other
	$(PY) -m experiments.$@ $(ARGS)

penguins: $(INSTALLED)  ## Train on penguins by forward gradients and by backpropagation
	$(PY) -m experiments.$@ $(ARGS)

forward_gradient_cnn: $(INSTALLED)  ## Train a conv net by forward gradients: what it takes
	$(PY) -m experiments.$@ $(ARGS)

drmad_study: $(INSTALLED)  ## Follow DrMAD's hypergradients beside exact ones
	$(PY) -m experiments.$@ $(ARGS)

drmad_study_long: $(INSTALLED)  ## The same over 200,000 steps of MNIST, hours (ARGS="--data-dir FOLDER")
	$(PY) -m experiments.drmad_study --parts tuning --data mnist --num-steps 200000 \
	  --num-meta-steps 20 --seeds 0 --out results/drmad_study_long $(ARGS)

forward_reverse: $(INSTALLED)  ## Compare hypergradients in forward, reverse and reversible mode
	$(PY) -m experiments.$@ $(ARGS)

hyper_cleaning: $(INSTALLED)  ## Find wrong labels by hypergradients of examples' weights
	$(PY) -m experiments.$@ $(ARGS)

usps_backprop: $(INSTALLED)  ## Try fourteen settings of a small net in one call
	$(PY) -m experiments.$@ $(ARGS)

optimizers: $(INSTALLED)  ## Compare five update rules on a deep network
	$(PY) -m experiments.$@ $(ARGS)

lint: $(INSTALLED)  ## Check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(INSTALLED)  ## Check types, and that those of the built wheel are complete
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL)/built .
	rm -rf $(WHEEL)/venv && $(PY) -m venv --without-pip $(WHEEL)/venv
	site=$$($(WHEEL)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  $(PY) -m zipfile -e $(WHEEL)/built/hgrad_jax-*.whl "$$site" && \
	  $(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$site/others.pth"
	pyright=$$($(PY) -c 'import os, sys; print(os.path.abspath(sys.executable))') && \
	  cd $(WHEEL) && VIRTUAL_ENV=$$PWD/venv PATH=$$PWD/venv/bin:$$PATH \
	  $$pyright -m pyright --verifytypes hgrad_jax --ignoreexternal

docs: $(INSTALLED)  ## Write the API's pages to docs/api
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	$(PY) -m pdoc --docformat google --output-directory docs/api hgrad_jax

clean:  ## Remove the environment, caches and outputs
	rm -rf .venv .cache build dist results docs/api .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
