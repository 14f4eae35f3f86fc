#!/usr/bin/env bash
# Compiles everything with clang 19 (its warnings are errors) and runs clang-tidy 19 over every source.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/tidy -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=clang++-19 \
  -DTHAW_BENCH=OFF -DTHAW_CUDA=OFF -DCMAKE_CXX_FLAGS="-Werror -Wno-missing-field-initializers" >/dev/null
cmake --build build/tidy -j "$(nproc)"

# tidy BUILD: the sources named on standard input, compiled as in BUILD.
tidy() { xargs -r -P "$(nproc)" -n 4 clang-tidy-19 -p "$1" --quiet --warnings-as-errors='*'; }
git ls-files '*.cc' | grep -v -e '^bench/' -e '^tests/' -e '/cuda/' | tidy build/tidy
# The host half of the CUDA rooms, where the release build has them: it needs the toolkit's headers.
[ ! -d build/release/engine/cuda ] || git ls-files 'engine/cuda/*.cc' 'engine/ops/cuda/*.cc' | tidy build/release
