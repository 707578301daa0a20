# `make demo` and `make test` set up everything they need, once: a virtual environment and the package with the tested
# versions. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

# Of tests that start processes of their own two files at once, of the others as many as there are cores; a file's tests share
# what its fixtures have run or compiled.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest
PROCESSES := tests/distributed tests/examples tests/faults tests/launch

.PHONY: demo study comparisons test test-slow test-oldest clients faults lint types bench first-step offloaded gpu kernels triton-versions docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   two-stage BERT pretraining on real text, on any machine; a picture and a table at the end"
	@echo "make study  accuracy against the batch for six optimizers: under half an hour on two cores; goes on after a stop"
	@echo "make comparisons  BERT with and without the second warmup, a batch that grows, 8-bit moments, ZeRO-2, cut batches, a kill"
	@echo "make test   every test but the slow ones; TEST=... adds options of pytest's"
	@echo "make test-slow   the slow ones: three and four ranks, every kind of checkpoint, all of ZeRO's options, all forms of kernels"
	@echo "make test-oldest   make test with the oldest torch, Lightning and other packages that are allowed; PYTHON=python3.10"
	@echo "make clients   other packages' modules under all callbacks, in .venv-clients; writes docs/works_with.md: five minutes"
	@echo "make faults   a training killed 20 times under each strategy, and every other fault: an hour"
	@echo "make bench  optimizer steps beside other libraries': about five minutes; BENCH=... adds options"
	@echo "make first-step   seconds of LAMB's first step in a fresh process, with and without compiled kernels; a minute"
	@echo "make offloaded   a step of ZeRO-2's offloaded LAMB beside DeepSpeed's CPU Adam, which is compiled first; two minutes"
	@echo "make gpu    on a GPU, by the machine's own Python: its tests, steps, benchmarks, constants: 8 minutes; GPU=... adds options"
	@echo "make kernels  what the compilers of three versions of Triton make of the kernels, as a table: ten minutes, no GPU"
	@echo "make docs   these pages and the API reference as HTML, in build/docs; a broken link is an error"
	@echo "make lint   ruff;  make types   mypy;  make clean   remove the environment and what runs wrote"

# One stamp for each set of packages: what is there is not installed again.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@ $(VENV)/.examples

# Without DeepSpeed, too, there is much to test. It is pure Python here: what it could compile, the tests do not use.
$(VENV)/.deepspeed: $(CONSTRAINTS) | $(VENV)/.dev
	@if DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) deepspeed; \
	then touch $@; else echo "DeepSpeed cannot be installed here: the tests of ZeRO will be SKIPPED."; fi

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

# One thread: the model is small, and threads that wait for a core that other work takes make it several times slower.
demo: $(VENV)/.examples
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/lightning-scale fit --config examples/bert/two_stage.yaml

# One worker a core; on a GPU larger networks. STUDY=--quick takes a minute.
study: $(VENV)/.examples
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m examples.scaling_study $(STUDY)

comparisons: $(VENV)/.examples $(VENV)/.deepspeed
	$(BIN)/python -m examples.comparisons $(COMPARISONS)

test: $(VENV)/.dev $(VENV)/.deepspeed
	$(PYTEST) -n auto --dist loadfile -m "not slow and not faults" $(addprefix --ignore=,$(PROCESSES)) $(TEST)
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not faults" $(PROCESSES) $(TEST)

test-slow: $(VENV)/.dev $(VENV)/.deepspeed triton-versions
	$(PYTEST) -m slow $(TEST)

# Several GB: torch 2.6 for CPUs alone is not on PyPI. PYTHON must be 3.10 or 3.11, for which numpy 1.25 was built.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

# An environment of its own, for these packages want others of versions that nothing else here needs.
CLIENTS := pytorch-forecasting==1.8.0 chemprop==2.3.1 neuralforecast==3.3.0 darts==0.48.1 statsmodels==0.15.0 transformers 'ray[train]==2.60.0'
clients: VENV := .venv-clients
clients:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e . pytest pytest-timeout $(CLIENTS)
	rm -f build/clients.json
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/clients --timeout 300
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.clients.page

faults: test_faults = tests/faults tests/checkpoints tests/callbacks/test_resume.py
faults: $(VENV)/.dev $(VENV)/.deepspeed
	$(PYTEST) -m "not gpu" $(test_faults) $(TEST)

# Without a GPU the parameters of the sets "cpu", "small" and "many", on two threads; with one, BERT-large's.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.optimizers $(BENCH)

first-step: $(VENV)/.dev
	$(BIN)/python -m benchmarks.first_step $(BENCH)

offloaded: $(VENV)/.dev $(VENV)/.deepspeed
	$(BIN)/python -m benchmarks.offloaded $(BENCH)

# By the Python that has the machine's torch and Triton: nothing is installed. GPU=--rehearse does the same on a CPU.
GPU_PYTHON ?= python3
gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu $(GPU)

# The oldest Triton that is allowed and the one that torch 2.11 brings, beside the one in the environment.
$(VENV)/triton-%: | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.new triton==$*
	@mv $@.new $@

triton-versions: $(VENV)/triton-3.2.0 $(VENV)/triton-3.6.0

kernels: triton-versions
	$(BIN)/python -m tests.optim.triton.table

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env -q -b html -c docs . build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
