#!/usr/bin/env bash
# Runs every bench on a finished build and writes JSON under bench/results/, with the machine described.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: run_benches.sh BUILD_DIR}
mkdir -p bench/results
cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -1)
for binary in "$build"/bin/*_bench; do
  name=$(basename "$binary" _bench)
  case $name in  # a GPU's, below
    thaw_adoption | thaw_cuda_* | thaw_fork_rounds | thaw_gpu | thaw_kv_copies | thaw_ranks | thaw_served | thaw_tensor_parallel | thaw_weights) continue ;;
  esac
  printf '== %s\n' "$name"
  "$binary" --benchmark_out="bench/results/$name.json" --benchmark_out_format=json \
    --benchmark_context=commit="$(git rev-parse --short HEAD)" --benchmark_context=cpu="$cpu" \
    --benchmark_min_time=0.3
done
printf '== fork round over HTTP\n'
.venv/bin/python bench/e2e/fork_round.py --output bench/results/fork_round.json
printf '== start, memory, respawn\n'
.venv/bin/python bench/e2e/start.py --output bench/results/start.json
printf '== a call from Python\n'
.venv/bin/python bench/python/overhead.py --output bench/results/python.json
printf '== prefilled or restored from a file\n'
.venv/bin/python bench/e2e/restore.py --output bench/results/restore.json
printf '== two models on one slot\n'
.venv/bin/python bench/e2e/swap.py --output bench/results/swap.json
printf '== ranges of S3\n'
.venv/bin/python bench/e2e/s3_ranges.py
if nvidia-smi -L > /dev/null 2>&1; then
  printf '== the GPU\n'
  "$build/bin/thaw" bench gpu --output bench/results/gpu.json
fi
