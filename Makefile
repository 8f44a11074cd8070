# make demo   a city scene, a flight over it, its Zarr store, PNGs and a film, under demo/
# make test   lint, types, kernel compile check, tests
# make lint   ruff and mypy --strict alone
# make kernels-all  compiles the CUDA kernels for every supported architecture
# make chaos  the long form of the tests that kill processes
# TORCH=cpu fetches torch's small CPU build; TORCH=installed uses the active environment and its torch.
SHELL := /bin/bash
TORCH ?= default
export TORCH
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: demo test lint kernels-check kernels-all chaos clean

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

# every .cu by nvcc alone: one architecture in `make test`, all in kernels-all; the bindings by the headers of any torch that has CUDA's
ARCHITECTURES := 80 86 89 90a 100
kernels-check: ARCHITECTURES := 90a
kernels-check kernels-all:
	@if command -v nvcc >/dev/null 2>&1 && compgen -G 'kernels/csrc/cuda/*.cu' >/dev/null; then
	@    mkdir -p .lint
	@    for arch in $(ARCHITECTURES); do for file in kernels/csrc/cuda/*.cu; do
	@        echo "nvcc sm_$$arch $$file"; nvcc -O3 -std=c++17 -arch=sm_$$arch -cubin -o .lint/$$(basename $$file .cu).sm_$$arch.cubin $$file
	@    done; done
	@    python=python3; [ "$(TORCH)" != installed ] && [ -x .venv/bin/python ] && python=.venv/bin/python
	@    headers=$$($$python -c 'import os, torch; print(os.path.join(os.path.relpath(os.path.dirname(torch.__file__)), "include"))' 2>/dev/null) || headers=none
	@    if [ -e "$$headers/c10/cuda/CUDAGuard.h" ]; then for file in kernels/csrc/cuda/*.cpp; do
	@        echo "nvcc $$file"; nvcc -x c++ -std=c++20 -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE -Xcompiler -fPIC,-fsyntax-only -isystem "$$headers" -isystem "$$headers/torch/csrc/api/include" -c -o .lint/binding.o "$$file"
	@    done; else echo "no torch here that has CUDA's headers: the bindings are left out"; fi
	@else echo "no nvcc, or no CUDA sources: compile check left out"; fi

test: lint kernels-check
	@python=$$(.ci/environment dev)
	@exec $$python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

chaos:
	@python=$$(.ci/environment dev)
	@exec $$python -m pytest -q -m chaos --timeout 3600

clean:
	rm -rf .lint .mypy_cache .ruff_cache .pytest_cache
