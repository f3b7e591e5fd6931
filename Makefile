# make demo   make an environment and run the main job on a tiny model
# make test   the tests
# make lint   formatting, lint and types
# make bench  the measurements that the README quotes
# make test-tpu   compile the programs for TPU slices; needs no TPU
# make test-faults   kills, failing disks, lost power, full disks: no row lost, none twice; every config.json
# make test PYTHON=python3.12 VENV=.venv-3.12   the tests on another Python, whose newest jax differs
# make tpu-smoke  on a machine with a TPU or GPU: does it give the CPU's rows?

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run
export TRANSFORMERS_NO_ADVISORY_WARNINGS := 1

.PHONY: demo test lint bench test-tpu test-faults tpu-smoke clean
.DEFAULT_GOAL := demo

$(VENV)/run.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: $(VENV)/run.stamp
	rm -rf $(DEMO)
	$(BIN)/python -m examples.make_demo $(DEMO)
	$(BIN)/python -m inference.simple_extraction_inference \
		--model_path $(DEMO)/checkpoint --tasks_file $(DEMO)/tasks.json \
		--output_dir $(DEMO)/outputs --activations_dir $(DEMO)/activations \
		--max_new_tokens 16 --predictions_per_task 2
	@ls -l $(DEMO)/activations $(DEMO)/outputs

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal --quiet

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.prefill --tokens 512

test-tpu:
	test -x .venv-tpu/bin/python || $(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,tpu]'
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest --quiet tests/tpu

test-faults: $(VENV)/test.stamp
	FAULTS=all FUZZ_MUTATIONS=100000 $(BIN)/python -m pytest --quiet -s tests/faults tests/extraction/formats/test_mutations.py tests/qwen_hooks/test_config_against_torch.py

tpu-smoke: $(VENV)/run.stamp
	$(BIN)/python -m tests.tpu.smoke

clean:
	rm -rf $(VENV) .venv-* $(DEMO)
