#!/usr/bin/env bash
# A program under one of compute-sanitizer's tools:
#
#   tests/gpu/sanitizer.sh TOOL PROGRAM [ARGUMENT...]    of memcheck synccheck racecheck
#   tests/gpu/sanitizer.sh TOOL --log FILE               what the tool printed before
#
# Exit status 0: nothing to explain; 77: the program skipped itself. LV_GPU_SMALL (tests/gpu/util.h)
# is set for the tool.
#
# Calls of CUDA's interface that fail are left out: who makes one looks at its status, and NCCL makes
# some that it expects to fail. So are NCCL's kernels under synccheck, which takes a barrier that not
# all warps of a block come to for an error and ends them.
#
# racecheck does not see the order that an mbarrier or an atomic gives warps of different tasks
# (arrive after writing, wait for the phase's parity before reading), and reports cuBLAS's and
# cuDNN's own kernels for it as well as three handovers of ours, which are let pass:
#
#   prefill_wgmma.cu   feed_bytes -> scale_and_mask, do_page        scales of a page of int8 KV
#   small_chain.cu     multiply_tiles -> lv_finish_slices           sums of a tile's slices
#   small_wide.cuh     lv_load_x, lv_load_sums -> lv_slab_fill's    a slab that all warps have read
#                      lv_copy_bulk                                 (lv_last_reader)
#
# Whatever else touches what they write is reported.
set -uo pipefail
tool=$1
shift
if [ "$1" = --log ]; then
    log=$2
else
    log=$(mktemp) || exit 1
    trap 'rm -f -- "$log"' EXIT
    export LV_GPU_SMALL=1
    case $tool in synccheck) LV_GPU_SMALL=2 ;; racecheck) LV_GPU_SMALL=3 ;; esac
    options=(--tool "$tool" --print-limit 100000 --report-api-errors no)
    [ "$tool" != synccheck ] || options+=(--kernel-name-exclude kns=nccl)
    # The tool's own count of a block's mbarriers may be too low, its manual says. It wants memory for
    # that many in every block of a launch: with 256 it gets none for passes on two GPUs. Ours have 52
    # at most (small_wide.h); some of cuDNN's kernels have more than 64.
    for n in 64 256; do
        compute-sanitizer "${options[@]}" --num-cuda-barriers "$n" "$@" >"$log" 2>&1
        grep -q 'Detected overflow' "$log" || break
    done
fi
! grep '^skipped: ' "$log" || exit 77

fail() { # fail WORDS [LINES]: with the log's first and last lines
    head -"${2:-20}" "$log"
    echo ...
    tail -"${2:-20}" "$log"
    echo "$tool: $1"
    exit 1
}

! grep -q 'Internal Sanitizer Error' "$log" || fail "the tool failed"
! grep -q 'Detected overflow' "$log" || fail "more mbarriers in a block than it was told"
grep -qE 'checks, 0 failed$' "$log" || fail "the program failed"
if [ "$tool" != racecheck ]; then
    grep -q ' ERROR SUMMARY: 0 errors$' "$log" || fail "errors" 200
    grep -v '^=' "$log"
    exit 0
fi
grep -q 'RACECHECK SUMMARY' "$log" || fail "did not end"
grep -v '^=' "$log"
awk '
    # A report names one access, then those it conflicts with, a line each.
    / Race reported between / {
        reports++
        others = ""
        if (/ at (nvjet_|cudnn_)/) others = " at (nvjet_|cudnn_)"
        else if (/ Write access at .*feed_bytes<.* in prefill_wgmma\.cu:/)
            others = " Read access at .*(scale_and_mask<.* in prefill_tile\\.cuh|do_page<.* in prefill_wgmma\\.cu):"
        else if (/ Write access at .*multiply_tiles<.* in small_chain\.cu:/)
            others = " Read access at .*lv_finish_slices<.* in small_finish\\.cuh:"
        else if (/ Write access at lv_copy_bulk\(.* in small\.cuh:/)
            others = " Read access at lv_load_(x|sums)\\(.* in small\\.cuh:"
        if (others == "") { open++; print }
    }
    / and (Read|Write) access at / && others != "" && $0 !~ others { open++; print }
    END {
        printf "%d reports, %d lines unexplained\n", reports, open
        exit (open > 0)
    }' "$log"
