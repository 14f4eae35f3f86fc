#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for FUZZ_SECONDS (60) seconds; only those named as
# arguments where there are any. What is found lies in build/fuzz/findings/ and fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
build=build/fuzz

cmake --preset fuzz >/dev/null
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets <"$build/fuzz_targets.txt"
cmake --build "$build" -j "${JOBS:-$(nproc)}" --target "${targets[@]/#/fuzz_}"

# No input is larger than 64 KiB: an allocation of 64 MiB was justified by none.
limits=(-max_len=65536 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10)
status=0
mkdir -p "$build/findings"
for target in "${targets[@]}"; do
  grown="$build/corpus/$target"
  mkdir -p "$grown"
  seeds=("tests/fuzz/corpus/$target")
  if [ "$target" = template ]; then
    seeds+=(tests/data/templates)
    fetched="${THAW_CACHE_DIR:-$HOME/.cache/thaw}/templates"  # make templates
    [ ! -d "$fetched" ] || seeds+=("$fetched")
  fi
  printf '==> fuzz_%s, %s s\n' "$target" "$seconds"
  "$build/bin/fuzz_$target" "$grown" "${seeds[@]}" "${limits[@]}" -max_total_time="$seconds" \
    -artifact_prefix="$build/findings/$target-" -print_final_stats=1 2>"$build/$target.log" ||
    { status=1; tail -n 40 "$build/$target.log"; }
  grep -E '^stat::(number_of_executed_units|peak_rss_mb)' "$build/$target.log" || true
done
exit $status
