#!/usr/bin/env bash
# clang-tidy 19 over every source, and clang 19's own warnings over the tests too. Any finding fails.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B build/tidy -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=clang++-19 \
  -DTHAW_BENCH=OFF -DTHAW_CUDA=OFF -DCMAKE_CXX_FLAGS="-Wno-missing-field-initializers" >/dev/null

# compiled BUILD: the repository's .cc files that a build folder compiles.
compiled() {
  comm -12 <(git ls-files '*.cc' | sort) \
    <(grep -o '"file": "[^"]*"' "$1/compile_commands.json" | cut -d '"' -f 4 | sed "s|^$PWD/||" | sort -u)
}
# tidy BUILD [OPTION...]: the files named on standard input, compiled as in BUILD.
tidy() {
  xargs -r -P "$(nproc)" -n 2 clang-tidy-19 -p "$1" --quiet "${@:2}" 2> >(grep -v 'warnings\? generated' >&2)
}

found=0  # every part runs, whatever the one before found
compiled build/tidy | grep -v '^tests/' | tidy build/tidy || found=1
# clang-tidy insists on a check of its own beside the compiler's.
compiled build/tidy | grep '^tests/' | tidy build/tidy --checks='-*,clang-diagnostic-*,bugprone-unused-raii' || found=1
# The host half of the CUDA rooms, where the release build has them: it needs the toolkit's headers.
[ ! -f build/release/compile_commands.json ] ||
  comm -13 <(compiled build/tidy) <(compiled build/release | grep -v -e '^tests/' -e '^bench/') |
    tidy build/release --extra-arg=-Wno-unknown-warning-option || found=1  # they are GCC's
exit "$found"
