#!/usr/bin/env bash
# Runs every test of `make test` on a finished build: ctest, then pytest. Both always run.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: run_tests.sh BUILD_DIR}
status=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" || status=1
THAW_BINARY="$PWD/$build/bin/thaw" THAW_BUILD="$PWD/$build" \
  .venv/bin/python -m pytest -q tests/architecture tests/e2e --ignore=tests/e2e/long || status=1
THAW_BINARY="$PWD/$build/bin/thaw" THAW_BUILD="$PWD/$build" \
  .venv/bin/python -m pytest -q tests/python --ignore=tests/python/long || status=1
exit $status
