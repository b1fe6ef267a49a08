#!/usr/bin/env bash
# What run.sh needs of a build, packed for a GPU machine that cannot build it itself:
#
#   tests/gpu/pack.sh BUILD FILE.tar.xz
#
# The programs, the list of tests, and in lib/ every shared library that they load but glibc's, GCC's and
# CUDA's, which that machine must have (no older than here). There, in this source tree:
#
#   mkdir packed && tar -C packed -xf FILE.tar.xz
#   LD_LIBRARY_PATH=$PWD/packed/lib:/usr/local/cuda/lib64 BUILD=packed tests/gpu/run.sh
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
build=$1 to=$(realpath -m -- "$2")
stage=$(mktemp -d)
trap 'rm -rf -- "$stage"' EXIT

mkdir "$stage/bin" "$stage/tests" "$stage/lib"
cp "$build/tests/gpu.txt" "$stage/tests"
strip -o "$stage/bin/describe" "$build/bin/describe"
strip -o "$stage/bin/llava-bench" "$build/bin/llava-bench"
for program in $(cut -d' ' -f2 "$build/tests/gpu.txt" | sort -u); do
    strip -o "$stage/tests/$program" "$build/tests/$program"
done
ldd "$stage"/bin/* "$stage"/tests/*_* | awk '$2 == "=>" && $3 ~ "^/" { print $3 }' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*|libgcc_s|libstdc\+\+|libcu[^/]*|libnv[^/]*|libnccl)\.so' |
    xargs -r cp -L -t "$stage/lib"
tar -C "$stage" -c bin tests lib | xz -T0 --lzma2=preset=1,dict=64MiB >"$to"
du -h "$to"
