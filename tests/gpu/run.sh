#!/usr/bin/env bash
# All tests and measurements that want a GPU, in one go, with a table at the end.
#
#   tests/gpu/run.sh [PART...]     of tests bench describe folder full-size sanitizer; without any, all
#
# BUILD    a build folder (default: build, made where it has no programs). Programs built elsewhere
#          do: this uses neither CMake nor the paths in it.
# OUT      where logs go (default: $BUILD/gpu-logs)
# SCRATCH  where models of 4.5 GB (bench, describe, folder) and 14 GB (full-size) may lie for the
#          time being (default: the temporary folder; full-size looks for itself)
# MODEL    shapes of bench and describe (default: llava-1.6-7b)
# WRITE    how models are written: --dense for an f16 decoder (14 GB)
# FOLDER   further options of describe in folder, as --max-batch-size 96
# FOLDER_MODEL, DEVICE  its one model, instead of both; its device (cuda)
# BENCH    further options of llava-bench, as --stages decode --batches 1
# JOBS     tests at once (default: 4)
# LIMIT    seconds that a program has under the sanitizer (default: 400)
# ONLY     a pattern of names of the sanitizer's runs, as synccheck_gpu_(dense|attention); default: all
set -uo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 1

root=$PWD
build=$(realpath -m -- "${BUILD:-build}")
out=$(realpath -m -- "${OUT:-$build/gpu-logs}")
scratch=$(mktemp -d -- "${SCRATCH:-${TMPDIR:-/tmp}}/llava-gpu-XXXXXX") || exit 1
model=${MODEL:-llava-1.6-7b}
table=$out/table.txt
export LV_SOURCE_DIR=$root LLAVA_ASSETS=$root/assets OMP_WAIT_POLICY=passive
trap 'rm -rf -- "$scratch"' EXIT
mkdir -p "$out"
: >"$table"

row() { # row PART NAME RESULT SECONDS [WORDS]
    printf '%-10s %-34s %-8s %8s  %s\n' "$1" "$2" "$3" "$4" "${5:-}" >>"$table"
}

seconds_since() { # seconds_since START, both as $EPOCHREALTIME
    awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'
}

result() { # result STATUS
    case $1 in 0) echo ok ;; 77) echo skipped ;; 124) echo late ;; *) echo FAILED ;; esac
}

# pip's CUDA libraries, for machines that have cuDNN and cuBLAS nowhere else.
find_libraries() {
    local folders
    folders=$(python3 -c 'import glob, os, nvidia
print(":".join(f for p in nvidia.__path__ for f in sorted(glob.glob(os.path.join(p, "*", "lib")))))' \
        2>/dev/null) || return 0
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folders
}

compile() {
    [ -x "$build/bin/llava-bench" ] && [ -s "$build/tests/gpu.txt" ] && return
    cmake -S "$root" -B "$build" -G Ninja >"$out/build.log" 2>&1 &&
        ninja -C "$build" >>"$out/build.log" 2>&1 || {
        tail -30 "$out/build.log"
        echo "run.sh: the build failed" >&2
        exit 1
    }
}

# --- many programs at once ------------------------------------------------------------------------

# One line of a list, run: NAME LIMIT COMMAND...; leaves NAME.log and NAME.result in $logs.
run_line() {
    local name=$1 limit=$2 start=$EPOCHREALTIME status
    shift 2
    timeout "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
    status=$?
    echo "$status $(seconds_since "$start")" >"$logs/$name.result"
}
export -f run_line seconds_since

# run_list PART: the lines of standard input, JOBS at once; logs end up in one file.
run_list() {
    local part=$1 name status seconds last
    export logs=$scratch/$part
    mkdir -p "$logs"
    cat >"$logs.list"
    xargs -r -d '\n' -P "${JOBS:-4}" -I{} bash -c 'run_line $1' - {} <"$logs.list"
    while read -r name _; do
        read -r status seconds <"$logs/$name.result"
        last=$(grep -v '^$' "$logs/$name.log" | tail -1 | cut -c1-100)
        row "$part" "$name" "$(result "$status")" "$seconds" "$last"
        {
            printf '\n== %s: exit status %s\n' "$name" "$status"
            cat "$logs/$name.log"
        } >>"$out/$part.log"
        if [ "$status" != 0 ] && [ "$status" != 77 ]; then
            printf '\n== %s: exit status %s\n' "$name" "$status"
            tail -15 "$logs/$name.log"
        fi
    done <"$logs.list"
}

tests() {
    python3 -B "$root/tests/golden/tiny.py" "$scratch/golden" >/dev/null
    : >"$out/tests.log"
    while read -r name program arguments; do
        [ "$name" = gpu_full_size ] && continue # part full-size runs it
        echo "$name 300 $build/tests/$program ${arguments//GOLDEN/$scratch\/golden}"
    done <"$build/tests/gpu.txt" | run_list tests
}

sanitizer() {
    local name program arguments tool
    : >"$out/sanitizer.log"
    while read -r name program arguments; do
        case $name in gpu_full_size | golden_*) continue ;; esac
        for tool in memcheck synccheck racecheck; do
            echo "${tool}_$name ${LIMIT:-400}" \
                "$root/tests/gpu/sanitizer.sh $tool $build/tests/$program $arguments"
        done
    done <"$build/tests/gpu.txt" | grep -E -- "${ONLY:-.}" | run_list sanitizer
}

# --- speeds -----------------------------------------------------------------------------------------

# The synthetic checkpoint that bench and describe share; sets $checkpoint.
write_model() { # of $model
    checkpoint=$scratch/$model
    [ -d "$checkpoint" ] && return
    # shellcheck disable=SC2086 # several options
    "$build/bin/llava-bench" --synthetic "$model" ${WRITE:-} --write "$checkpoint" \
        --tokenizer "$root/tests/golden/tokenizer/small.model"
}

bench() {
    local start status
    write_model || { row bench "$model" FAILED 0 "not written"; return; }
    start=$EPOCHREALTIME
    # shellcheck disable=SC2086 # several options
    "$build/bin/llava-bench" --model "$checkpoint" --device cuda ${BENCH:-} 2>"$out/bench.log" |
        tee "$out/bench.txt"
    status=$?
    [ "$status" = 0 ] || tail -3 "$out/bench.log"
    row bench "$model" "$(result "$status")" "$(seconds_since "$start")"
}

# The whole process, from its start to its end: a JPEG of 1024 x 899, 256 tokens, files in memory.
describe() {
    local i start status picture=$scratch/picture.jpg
    write_model || { row describe "$model" FAILED 0 "not written"; return; }
    python3 -c 'import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").resize((1024, 899)).save(sys.argv[2], quality=90)' \
        "$root/assets/pictures/beach.png" "$picture" || {
        row describe picture FAILED 0 "no Pillow"
        return
    }
    : >"$out/describe.log"
    for i in warm-up 1 2 3; do
        start=$EPOCHREALTIME
        "$build/bin/describe" -v --device cuda --model "$checkpoint" -n 256 "$picture" \
            >>"$out/describe.log" 2>&1
        status=$?
        row describe "whole process, run $i" "$(result "$status")" "$(seconds_since "$start")" \
            "1024x899 JPEG, 256 tokens, $model"
    done
    tail -22 "$out/describe.log"
}

# Many pictures in one run of describe: folder_of MODEL PICTURES TOKENS; 640 x 480 JPEGs, each another
# one, each answered in so many tokens whatever the random weights say. The rate is describe's own,
# from the first picture handed over to the last record written: it leaves loading out.
folder_of() {
    local model=$1 n=$2 n_tokens=$3 start status summary written log=$out/folder-$1.log
    local pictures=$scratch/pictures output=$scratch/captions-$1.jsonl
    write_model || { row folder "$model" FAILED 0 "not written"; return; }
    [ "$(find "$pictures" -name '*.jpg' 2>/dev/null | wc -l)" = "$n" ] ||
        python3 -B "$root/tests/speed/pictures.py" "$pictures" "$n" || {
        row folder "$model" FAILED 0 "no pictures: is Pillow there?"
        return
    }
    start=$EPOCHREALTIME
    # shellcheck disable=SC2086 # several options
    "$build/bin/describe" -v --device "${DEVICE:-cuda}" --model "$checkpoint" --quant-policy 8 \
        --ignore-eos --max-tokens "$n_tokens" --output "$output" ${FOLDER:-} "$pictures" 2>"$log"
    status=$?
    written=$(grep -c "\"completion_tokens\":${n_tokens}[,}]" "$output" 2>/dev/null)
    [ "$status" != 0 ] || [ "$written" = "$n" ] || status=1
    summary=$(sed -n 's/^describe: described .* (\(.*\)).*/\1/p' "$log")
    row folder "$model, $n pictures" "$(result "$status")" "$(seconds_since "$start")" \
        "$summary, $n_tokens tokens each, KV8${WRITE:+ $WRITE}${FOLDER:+ $FOLDER}"
    grep -E '^(device|cache|on it|memory|engine|describe:)' "$log" | tail -8
    rm -f -- "$output"
}

folder() {
    folder_of "${FOLDER_MODEL:-llava-1.5-7b}" 256 64
    [ -n "${FOLDER_MODEL:-}" ] || folder_of llava-1.6-7b 256 128
}

full_size() {
    local start=$EPOCHREALTIME status
    "$root/tests/gpu/full_size/full_size.py" "$build/tests/test_gpu_full_size" \
        ${SCRATCH:+--scratch "$SCRATCH"} 2>&1 | tee "$out/full-size.log"
    status=$?
    row full-size "7B against transformers" "$(result "$status")" "$(seconds_since "$start")"
}

find_libraries
compile
[ $# -gt 0 ] || set -- tests bench describe folder full-size sanitizer
for part in "$@"; do
    case $part in
    tests | bench | describe | folder | sanitizer) "$part" ;;
    full-size) full_size ;;
    *)
        echo "run.sh: $part: expected tests, bench, describe, folder, full-size or sanitizer" >&2
        exit 2
        ;;
    esac
done
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
cat "$table"
! grep -qE ' (FAILED|late) ' "$table"
