#!/usr/bin/env bash
# clang-tidy 19 over every source, and clang 19's own warnings over the tests too. Any finding fails.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/tidy -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=clang++-19 \
  -DTHAW_BENCH=OFF -DTHAW_CUDA=OFF -DCMAKE_CXX_FLAGS="-Wno-missing-field-initializers" >/dev/null

# tidy BUILD [OPTION...]: the files named on standard input, compiled as in BUILD.
tidy() { xargs -r -P "$(nproc)" -n 2 clang-tidy-19 -p "$1" --quiet "${@:2}"; }
git ls-files '*.cc' | grep -v -e '^bench/' -e '^tests/' -e '/cuda/' -e '_cuda\.cc$' | tidy build/tidy
# clang-tidy insists on a check of its own beside the compiler's.
git ls-files 'tests/*.cc' | grep -v -e '/cuda/' -e '/fuzz/' -e 'cuda_' | tidy build/tidy --checks='-*,clang-diagnostic-*,bugprone-unused-raii'
# The host half of the CUDA rooms, where the release build has them: it needs the toolkit's headers.
[ ! -d build/release/engine/cuda ] || git ls-files '*/cuda/*.cc' '*_cuda.cc' | grep -v -e '^bench/' -e '^tests/' | tidy build/release
