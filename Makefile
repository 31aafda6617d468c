# git, make and Python >= 3.11 are all a fresh machine needs: every target makes .venv first, when it is missing or old.
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint check bench bench-quality bench-gpu format clean

PYTHON ?= python3
BIN := .venv/bin
# Of the GPU targets; a machine with torch and pytest needs nothing else: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help:
	echo "make demo    from nothing to a registered model and demo.png, on two CPU cores"
	echo "make test    the tests"
	echo "make check   ruff, mypy --strict and every test, as CI runs them"
	echo "make bench   every benchmark, beside pythae: an hour on two quiet cores"
	echo "make bench-quality DATA=...    ours beside a VAE, a GAN, Larsen's and pythae's: hours of a core"
	echo "make test-gpu, make bench-gpu    the same for one GPU"

demo: .venv/ready data/digits/dataset.json
	$(BIN)/vaegan tune run tune_configs/digits.yaml
	$(BIN)/vaegan register digits-search --name digits
	$(BIN)/vaegan sample models:/digits@champion --count 64 --seed 0 --data data/digits --out demo.png
	echo
	echo "open the picture:  demo.png"
	echo "open the tracker:  $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db"
	echo "train your own:    $(BIN)/vaegan train digits --set objective.lambda=0 --set name=just-a-vae"

data/digits/dataset.json: | .venv/ready
	$(BIN)/vaegan data prepare digits --out data/digits

test: .venv/dev
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest

BENCHMARKS := step whole_run evaluation two_workers data_path growth startup

bench: .venv/bench
	for name in $(BENCHMARKS); do echo; echo "== $$name"; $(BIN)/python -m tests.bench.$$name || exit 1; done

DATA ?= data/fashion-mnist

bench-quality: .venv/bench
	$(BIN)/python -m tests.bench.quality $(DATA)

test-gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),.venv/dev)
	$(GPU_PYTHON) -m pytest -m gpu tests/vaegan

bench-gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),.venv/bench)
	$(GPU_PYTHON) -m tests.bench.gpu

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	echo "installing into .venv: some minutes and 6 GB the first time, most of it torch"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/ready
	$(PIP) --editable '.[dev]'
	touch $@

.venv/bench: .venv/ready
	$(PIP) --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
