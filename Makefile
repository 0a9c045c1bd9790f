# `make help` lists the targets. Everything runs in .venv, which `make setup` builds.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
CACHE ?= $(or $(FINETUNE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator)
export FINETUNE_CACHE := $(CACHE)
# Without bytecode each of the thousand processes of a test run compiles our sources anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup tools images demo test test-pythons test-images test-nodes check format crds docs families golden clean simulate torture

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## python environment and control plane, cached outside the tree
	@$(PYTHON) hack/setup.py $(SETUP_FOR)
	@$(BIN)/python -m finetune_local build

tools: setup ## what only tests need (an S3 server, Helm, Prometheus, the images' Python), cached outside the tree
	@$(BIN)/python -m tests.tools

images: ## both images, with docker, podman or buildah (REGISTRY=..., TAG=..., TOOL=..., BUILD_FLAGS=...)
	@$(PYTHON) hack/python_version.py && $(PYTHON) hack/images.py

demo: SETUP_FOR := --demo
demo: setup ## fine-tune a real 135M model through a real API server (KEEP=1 leaves the cluster up)
	@$(BIN)/python -m finetune_local demo $(if $(KEEP),--keep)

test: tools ## everything, as CI runs it
	@$(BIN)/python hack/lint.py
	@$(BIN)/python -m hack.test

check: tools ## the inner loop: lint, types, fast tests, under 90 s
	@$(BIN)/python hack/lint.py
	@$(BIN)/python hack/check.py

test-pythons: tools ## the operator's and supervisor's tests on every Python that we declare and this machine has
	@$(BIN)/python -m nox

test-images: setup ## build both images and run what is in them (root, buildah, debootstrap; 35 GB)
	@FINETUNE_TEST_IMAGES=1 $(BIN)/python -m pytest tests/images -v -s

test-nodes: setup ## scenarios on a real Kubernetes with three nodes (root; 20 minutes to build once; TESTS=-k power)
	@FINETUNE_TEST_NODES=1 $(BIN)/python -m pytest tests/nodes -v -s $(TESTS)

simulate: setup ## random histories of the operator in a simulated cluster (N=100000, SEED=...)
	@$(BIN)/python -m tests.operator.simulator $(or $(N),100000) $(if $(SEED),--seed $(SEED))

torture: setup ## kill ranks in the middle of saves (N=200, SEED=1)
	@$(BIN)/python -m tests.trainer.torture --kills $(or $(N),200) --seed $(or $(SEED),1)

gpu-check: setup ## pack a check of the trainer for a machine with GPUs and no network, and run it if this one has GPUs
	@$(BIN)/python benchmarks/gpu/pack.py

format: ## ruff format and fixable lints
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

crds: ## write crds/, docs/reference/api.md, the chart's copies and its dashboard from the models, the roles, values.yaml and hack/
	@$(BIN)/python -m hack.crd > crds/finetune.dev_finetunejobs.yaml
	@$(BIN)/python -m hack.reference > docs/reference/api.md
	@$(BIN)/python hack/chart.py
	@$(BIN)/python hack/dashboard.py

docs: ## build the documentation site into build/site (SERVE=1 serves it and rebuilds on changes)
	@$(PYTHON) hack/setup.py
	@$(BIN)/python -m hack.docs_reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(SERVE),serve,build --strict)

families: setup ## write docs/reference/models.md, and train every supported family on CPU (30 minutes)
	@$(BIN)/python -W ignore -m tests.trainer.families > build/models.md && mv build/models.md docs/reference/models.md
	@FINETUNE_EVERY_FAMILY=1 $(BIN)/python -m pytest -q tests/trainer/test_supported_families.py

golden: tools ## write what the chart renders to tests/chart/golden, to be read as a diff
	@$(BIN)/python -m tests.chart.renderings

clean: ## stop the clusters of this checkout and remove what it built, except models; caches stay
	@$(PYTHON) hack/python_version.py && $(PYTHON) hack/clean.py
