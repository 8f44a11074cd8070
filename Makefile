# make demo   a city scene, a flight over it, its Zarr store, PNGs and a film, under demo/
# make test   lint, types, kernel compile check, tests
# make lint   ruff and mypy --strict alone
# make chaos  the long form of the tests that kill processes
# TORCH=cpu fetches torch's small CPU build; TORCH=installed uses the active environment and its torch.
SHELL := /bin/bash
TORCH ?= default
export TORCH
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: demo test lint kernels-check chaos clean

demo:
	@python=$$(.ci/environment dev)
	@exec $$python -m landmark_batch.cli demo demo --render

lint:
	@python=$$(.ci/environment dev)
	@$$python -m ruff check .
	@$$python -m ruff format --check .
	@rm -rf .lint && mkdir .lint
	@$$python -m build --wheel --no-isolation --outdir .lint . >.lint/build.log 2>&1 || { cat .lint/build.log; exit 1; }
	@$$python -m zipfile -e .lint/*.whl .lint/site
	@cd .lint/site && $(if $(findstring installed,$(TORCH)),$$python,../../$$python) -m mypy --strict --config-file ../../pyproject.toml -p landmark_batch

kernels-check:
	@if command -v nvcc >/dev/null 2>&1 && compgen -G 'kernels/csrc/cuda/*.cu' >/dev/null; then
	@    mkdir -p .lint
	@    for file in kernels/csrc/cuda/*.cu; do echo "nvcc $$file"; nvcc -arch=sm_90 -std=c++17 -cubin -o .lint/$$(basename $$file).cubin $$file; done
	@else echo "no nvcc, or no CUDA sources: compile check left out"; fi

test: lint kernels-check
	@python=$$(.ci/environment dev)
	@exec $$python -m pytest -q

chaos:
	@python=$$(.ci/environment dev)
	@exec $$python -m pytest -q -m chaos --timeout 3600

clean:
	rm -rf .lint .mypy_cache .ruff_cache .pytest_cache
