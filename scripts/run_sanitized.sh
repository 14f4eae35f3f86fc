#!/usr/bin/env bash
# Builds the tests with a sanitizer (asan: Address and UndefinedBehavior; tsan: Thread) and runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: run_sanitized.sh asan|tsan}
cmake --preset "$kind" >/dev/null
# The suite on the real model checks figures, not memory: an instrumented binary takes far too long over it. asan compiles it, for
# clang's warnings.
skipped='exactness_real|exactness_grammar|model_reference'
not_built=-
symbolizer=external_symbolizer_path=$(command -v llvm-symbolizer-19)
case $kind in
  asan) export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:$symbolizer UBSAN_OPTIONS=print_stacktrace=1 ;;
  tsan)
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:$symbolizer
    export GTEST_FILTER='-*Mutation*'  # thousands of damaged files, one after the other
    # The embedded host's thread has descriptors of its own, which ThreadSanitizer takes for the process's of the same number.
    skipped+='|embedded_host'
    # One thread each, or one engine whose thread pool is the operations' tests' matter: not built either.
    skipped+='|cli|cli_sessions|coalescer_openai|exactness|forkpool_protocol|kv|model|sampling'
    not_built=$skipped
    ;;
esac
ninja -C "build/$kind" -t targets all | sed -n 's/^\(thaw_[a-z_]*_test\): phony$/\1/p' |
  grep -vxE "thaw_($not_built)_test" | xargs cmake --build "build/$kind" -j "$(nproc)" --target
ctest --test-dir "build/$kind" --output-on-failure --no-tests=error -j "$(nproc)" -E "^thaw_($skipped)_test(_NOT_BUILT|\.|$)"
if [ "$kind" = asan ]; then  # the Python extension, where there is pybind11
  cmake --build "build/$kind" -j "$(nproc)" --target thaw_python tiny_models
  .venv/bin/python scripts/run_sanitized_python.py
fi
