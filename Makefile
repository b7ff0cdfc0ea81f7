# `make app` and `make test` do all the set-up that they need: Python 3.11 with its venv module is enough.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

PYTEST ?=

.PHONY: setup app test docs durations test-saelens test-peers lint zoo fuzz torture laws mutants bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(if $(shell command -v $(PYTHON)),$(PYTHON),python3) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[dev]"
	$(BIN)/workbench fetch
	touch $(READY)

app: $(READY)
	$(BIN)/workbench app

# two processes of one thread each take half as long as one process of two; compiled files are kept, whatever the shell
# says, since a third of the time until the first test goes into compiling the tests
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

# the documentation site, into site/; a broken link, a missing anchor or a page outside of the navigation stops it
docs: .venv/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[docs]"
	touch $@

# the seconds of each test file, by which `make test` orders them
durations: PYTEST = --write-durations
durations: test

# sae-lens wants an older TransformerLens, so it has an environment of its own
test-saelens: $(READY) .venv-saelens/.ready
	WORKBENCH_SAELENS_PYTHON=$(CURDIR)/.venv-saelens/bin/python $(BIN)/python -m pytest tests/dictionaries/test_dictionaries_disk.py

.venv-saelens/.ready:
	$(if $(shell command -v $(PYTHON)),$(PYTHON),python3) -m venv .venv-saelens
	.venv-saelens/bin/python -m pip install --quiet torch==2.13.0
	.venv-saelens/bin/python -m pip install --quiet sae-lens==6.54.12
	touch .venv-saelens/.ready

# each tool opens what was written for it, in an environment of its own
PEER = $(if $(shell command -v $(PYTHON)),$(PYTHON),python3) -m venv
test-peers: $(READY) .venv-saelens/.ready .venv-peers/sparsify/.ready .venv-peers/dictionary_learning/.ready .venv-peers/circuit_tracer/.ready .venv-peers/tuned_lens/.ready .venv-peers/lm_eval/.ready
	WORKBENCH_SAELENS_PYTHON=$(CURDIR)/.venv-saelens/bin/python \
	WORKBENCH_SPARSIFY_PYTHON=$(CURDIR)/.venv-peers/sparsify/bin/python \
	WORKBENCH_DICTIONARY_LEARNING_PYTHON=$(CURDIR)/.venv-peers/dictionary_learning/bin/python \
	WORKBENCH_CIRCUIT_TRACER_PYTHON=$(CURDIR)/.venv-peers/circuit_tracer/bin/python \
	WORKBENCH_TUNED_LENS_PYTHON=$(CURDIR)/.venv-peers/tuned_lens/bin/python \
	WORKBENCH_LM_EVAL_PYTHON=$(CURDIR)/.venv-peers/lm_eval/bin/python \
		$(BIN)/python -m pytest tests/dictionaries/test_peers.py tests/dictionaries/test_cross_layer.py tests/lens/test_tuned.py \
			tests/attribution/test_viewer_graphs.py tests/index/test_exports.py tests/steering/test_lm_eval.py

# the harness alone: what Workbench needs beside it comes from .venv
.venv-peers/lm_eval/.ready:
	$(PEER) .venv-peers/lm_eval
	.venv-peers/lm_eval/bin/python -m pip install --quiet torch==2.13.0 lm-eval==0.4.13
	touch $@

.venv-peers/sparsify/.ready:
	$(PEER) .venv-peers/sparsify
	.venv-peers/sparsify/bin/python -m pip install --quiet torch==2.13.0 eai-sparsify==1.3.3
	touch $@

# the buffers of dictionary_learning want an old nnsight, which its dictionaries don't use
.venv-peers/dictionary_learning/.ready:
	$(PEER) .venv-peers/dictionary_learning
	.venv-peers/dictionary_learning/bin/python -m pip install --quiet torch==2.13.0 transformers datasets einops tqdm wandb zstandard safetensors
	.venv-peers/dictionary_learning/bin/python -m pip install --quiet --no-deps dictionary_learning==0.1.0
	touch $@

.venv-peers/circuit_tracer/.ready:
	$(PEER) .venv-peers/circuit_tracer
	.venv-peers/circuit_tracer/bin/python -m pip install --quiet torch==2.13.0 circuit-tracer==0.5.0
	touch $@

# tuned-lens asks for programs that its lenses don't use
.venv-peers/tuned_lens/.ready:
	$(PEER) .venv-peers/tuned_lens
	.venv-peers/tuned_lens/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate datasets safetensors
	.venv-peers/tuned_lens/bin/python -m pip install --quiet --no-deps tuned-lens==0.2.0
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# every saver killed at every contact with the disk and at any time, on real disks that are full, read-only or closed, and
# beside a process that does the same (disks need the right to mount); a megabyte of the worst kind through every door;
# 10,000 malformed arguments and altered files; it takes half an hour
torture: $(READY)
	WORKBENCH_TORTURE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		tests/laws/test_kills.py tests/laws/test_disks.py tests/laws/test_races.py tests/laws/test_doors.py \
		tests/laws/test_hostile_folders.py
	WORKBENCH_FUZZ=$(FUZZED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(FUZZES)

# every architecture of the zoo, and the page that says what each can do
zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/write_models_page.py docs/models.md

FUZZES := tests/laws/test_fuzz_arguments.py tests/laws/test_fuzz_files.py
# calls; of each kind of thing that is saved a fiftieth as many alterations are tried, some 3,500 in all
FUZZED := 6500

# every malformed argument of every public function, and every alteration of everything that is saved: hours; `make torture`
# has a sample of 10,000, and WORKBENCH_FUZZ_SEED chooses another one
fuzz: $(READY)
	WORKBENCH_FUZZ=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(FUZZES)

# every law over everything that it covers, where `make test` runs a seeded sample; the laws of disks and of malformed
# input have targets of their own, `make torture` and `make fuzz`, and run here as in `make test`
laws: $(READY)
	WORKBENCH_LAWS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/laws

# the notebooks as they are written, where `make test` runs them with small settings; a quarter of an hour
.PHONY: notebooks
notebooks: $(READY)
	WORKBENCH_LAWS=all $(BIN)/python -m pytest tests/test_notebooks.py

# faults planted by hand, one by one, each of which the laws have to find; it takes a quarter of an hour
mutants: $(READY)
	$(BIN)/python scripts/run_mutants.py

bench: $(READY)
	for each in benchmarks/bench_*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

clean:
	rm -rf .venv .venv-saelens .venv-peers build site *.egg-info .pytest_cache .ruff_cache
