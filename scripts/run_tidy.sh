#!/usr/bin/env bash
# Compiles everything with clang 19 (its warnings are errors) and runs clang-tidy 19 over every source.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/tidy -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=clang++-19 \
  -DTHAW_BENCH=OFF -DCMAKE_CXX_FLAGS="-Werror -Wno-missing-field-initializers" >/dev/null
cmake --build build/tidy -j "$(nproc)"
git ls-files '*.cc' | grep -v -e '^bench/' -e '^tests/' |
  xargs -P "$(nproc)" -n 4 clang-tidy-19 -p build/tidy --quiet --warnings-as-errors='*'
