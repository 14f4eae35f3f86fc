#!/usr/bin/env bash
# Packs what a machine with a GPU, but without compilers and packages, needs for the GPU's tests and benches:
#
#   scripts/bundle_gpu.sh BUILD_DIR OUT.tar.xz      here
#   tar -xJf OUT.tar.xz -C DIR && DIR/run test      there: every test, none skipped; `test cuda_ops kvsnap_cuda`: some
#   DIR/run bench gpu --output gpu.json             there: `thaw bench gpu`; `bench ranks` with two GPUs
#   DIR/run thaw_cuda_ops_test --gtest_filter=...   there: any of its binaries
#
# Tests of the default model look for it in DIR/models, where it has to be put (scripts/get_model.py says where it is).
set -euo pipefail
cd "$(dirname "$0")/.."
usage='usage: bundle_gpu.sh BUILD_DIR OUT.tar.xz'
build=$(realpath "${1:?$usage}")
out=${2:?$usage}

tests='cuda all_gather cuda_ops kvsnap_cuda cuda_model cuda_ranks forkpool_cuda forkpool_ranks exactness_cuda'
benches='adoption cuda_model cuda_ops fork_rounds gpu kv_copies ranks served tensor_parallel weights'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder"/{bin,lib,testdata,data,models}
for binary in thaw $(printf 'thaw_%s_test ' $tests) $(printf 'thaw_%s_bench ' $benches); do
  strip -o "$folder/bin/$binary" "$build/bin/$binary"
done
# All but what comes with the system and with CUDA.
ldd "$folder"/bin/* | awk '$2 == "=>" && $3 ~ "^/" {print $3}' | sort -u |
  grep -vE '/lib(c|m|dl|rt|pthread|cuda|cublas|cublasLt)\.so' | xargs -I{} cp -L {} "$folder/lib/"
cp "$build"/testdata/tiny-cuda-*.gguf "$folder/testdata/"
cp -r tests/data/{families,logits_*} "$folder/data/"

# Tests look for their models and data where they were built.
cat > "$folder/run" <<EOF
#!/usr/bin/env bash
set -uo pipefail
here=\$(cd "\$(dirname "\$0")" && pwd)
export LD_LIBRARY_PATH="\$here/lib:/usr/local/cuda/lib64:\${LD_LIBRARY_PATH:-}" THAW_REQUIRE_GPU=1 THAW_CACHE_DIR="\$here"
mkdir -p "$build/testdata" "$PWD/tests/data"
cp -n "\$here"/testdata/* "$build/testdata/"
cp -rn "\$here"/data/* "$PWD/tests/data/"
what=\${1:-test}
case \$what in
  test)
    shift
    failed=
    for name in \${*:-$tests}; do
      echo "== thaw_\${name}_test"
      "\$here/bin/thaw_\${name}_test" --gtest_brief=1 || failed+=" \$name"
    done
    [ -z "\$failed" ] || { echo "failed:\$failed"; exit 1; }
    ;;
  bench) exec "\$here/bin/thaw" "\$@" ;;
  *) exec "\$here/bin/\$what" "\${@:2}" ;;
esac
EOF
chmod +x "$folder/run"
# The binaries have much in common: a window of 64 MiB sees it.
XZ_OPT=-9 tar -C "$folder" -cJf "$out" --owner=0 --group=0 .
du -h "$out"
