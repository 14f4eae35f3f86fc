# Every target does its own set-up and can be run again; what is done is skipped.
.DEFAULT_GOAL := help
SHELL := /bin/bash
JOBS ?= $(shell nproc)
BUILD := build/release
PYTHON := .venv/bin/python

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup:  ## install what is missing: packages (sudo only where not root) and .venv
	@scripts/setup.sh

model: setup  ## fetch the default model (93 MB) and the tests' vocabularies (7 MB) into the model cache
	@$(PYTHON) scripts/get_model.py >/dev/null
	@$(PYTHON) scripts/get_tokenizers.py >/dev/null

templates: setup  ## fetch the chat templates that the tests render (77 MB) into the model cache
	@$(PYTHON) scripts/get_templates.py >/dev/null

$(BUILD)/build.ninja: | setup
	@cmake --preset release >/dev/null

build: setup $(BUILD)/build.ninja  ## build/release/bin/thaw, tests and benches
	@cmake --build $(BUILD) -j $(JOBS)

binary: setup $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target thaw

demo: binary model  ## a real fan-out on a real model: what the fork saved
	@$(PYTHON) demos/pr_review_langgraph.py

serve: binary model  ## the server on the default model, 127.0.0.1:8000
	@$(BUILD)/bin/thaw serve

wheel: setup  ## the Python package's wheel, whole, in build/dist (PYTHONS="python3.10 python3.12": one for each)
	@$(PYTHON) scripts/build_wheel.py $(PYTHONS)

sdist: setup  ## its sources and a wheel built from them, in build/dist
	@$(PYTHON) scripts/build_wheel.py --sdist $(PYTHONS)

test: build model templates  ## every test (on two cores 15 minutes with a warm compiler cache, 25 from nothing)
	@scripts/run_tests.sh $(BUILD)

test-long: test-kills test-tools test-schemas test-openapi test-python-long test-exact test-tokenizers test-tidy test-asan test-tsan  ## all of the long checks below

test-tidy: setup-long  ## clang-tidy 19 over every source; the tests' come from clang in the two below
	@$(PYTHON) scripts/run_tidy.py

test-asan: build model setup-long  ## the tests under AddressSanitizer and UBSan (about 14 minutes)
	@scripts/run_sanitized.sh asan

test-tsan: build setup-long  ## the CPU tests under ThreadSanitizer (about 12 minutes)
	@scripts/run_sanitized.sh tsan

test-kills: binary model  ## 100 kills of workers under load (about 2 minutes)
	@$(PYTHON) -m pytest -q tests/e2e/long -k kills

test-tools: binary model  ## 100 forced tool calls at temperature 1, each of which must parse and validate (about 2 minutes)
	@$(PYTHON) -m pytest -q tests/e2e/long -k tool

test-python-long: build model  ## the wheel, built and tested in a clean environment
	@THAW_BUILD="$$PWD/$(BUILD)" $(PYTHON) -m pytest -q tests/python/long

test-openapi: binary model  ## schemathesis over /openapi.json: every check and phase, 30,000 cases (10 to 20 minutes)
	@$(PYTHON) -m pytest -q -s tests/e2e/long -k openapi

fuzz: setup-long  ## the fuzz targets, FUZZ_SECONDS (60) each
	@scripts/run_fuzz.sh

test-exact: build model  ## long exactness runs: the real model, and every family on the slower instruction sets (about 4 minutes)
	@$(PYTHON) -m pytest -q tests/e2e/long -k exact
	@echo "==> plain C++"; THAW_TEST_ISA=generic $(BUILD)/bin/thaw_exactness_test --gtest_brief=1 --gtest_filter='*.SharedTrunk*:*.InABatchOfEight*'
	@! grep -qw avx2 /proc/cpuinfo || { echo "==> AVX2"; THAW_TEST_ISA=avx2 $(BUILD)/bin/thaw_exactness_test --gtest_brief=1; }

test-clients: binary model  ## each client that people use, in an environment of its own: tools, structured output, a fan-out
	@$(PYTHON) scripts/client_tests.py

test-clients-core: binary model  ## of these, the three that are used most (2 to 6 minutes)
	@$(PYTHON) scripts/client_tests.py openai anthropic langchain

test-schemas: binary model  ## 500 random JSON schemas on the real model: every answer validates (about 4 minutes)
	@$(PYTHON) scripts/client_tests.py schemas

test-tokenizers: build  ## four more real vocabularies against Hugging Face's ids (fetches 77 MB where `make test` has not)
	@$(PYTHON) scripts/get_tokenizers.py --long >/dev/null
	@$(BUILD)/bin/thaw_tokenizer_test --gtest_brief=1 --gtest_also_run_disabled_tests --gtest_filter='*LongVocabulary*'

bench: build model  ## the benches; JSON under bench/results/
	@scripts/run_benches.sh $(BUILD)

bench-peers: build model  ## against llama.cpp, built from its PyPI sdist in a scratch folder (about 15 minutes)
	@$(PYTHON) bench/e2e/peers.py

fixtures: setup  ## make the reference fixtures again (needs some 5 GB for torch)
	@scripts/fixtures/make_fixtures.sh

setup-long: setup
	@scripts/setup.sh scripts/apt_packages.txt scripts/apt_packages_long.txt

format:  ## clang-format and ruff format
	@git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i
	@.venv/bin/ruff format --quiet demos scripts tests bench python

clean:  ## remove the build folders
	@rm -rf build

.PHONY: help setup model templates wheel sdist test-python-long build binary demo serve test test-long test-tidy test-asan test-tsan test-kills test-tools test-clients test-clients-core test-schemas test-openapi test-exact test-tokenizers fuzz bench bench-peers fixtures setup-long format clean
