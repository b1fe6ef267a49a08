#!/usr/bin/env bash
# A program under one of compute-sanitizer's tools:
#
#   tests/gpu/sanitizer.sh TOOL PROGRAM [ARGUMENT...]    of memcheck synccheck racecheck
#   tests/gpu/sanitizer.sh TOOL --log FILE               what the tool printed before
#
# Exit status 0: nothing to explain; 77: the program skipped itself. LV_GPU_SMALL (tests/gpu/util.h)
# is set for the tool.
#
# racecheck does not see the order that an mbarrier gives warps of different tasks (arrive after
# writing, wait for the phase's parity before reading), and reports cuBLAS's and cuDNN's own kernels
# for it as well as two handovers of ours, which are let pass:
#
#   prefill_wgmma.cu   feed_bytes -> scale_and_mask, do_page   scales of a page of int8 KV
#   small_chain.cu     multiply_tiles -> lv_finish_slices      sums of a tile's slices
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
    # The tool's own count of a block's mbarriers may be too low, its manual says. It wants memory for
    # that many in every block of a launch: thousands exhaust it.
    compute-sanitizer --tool "$tool" --num-cuda-barriers 256 --print-limit 100000 "$@" >"$log" 2>&1
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
    # NCCL asks for kernels that it was built without; memcheck reports its call that failed.
    awk '
        /^=+ Program hit cudaErrorNoKernelImageForDevice / { hit = 1 }
        hit && / in libnccl\.so/ { by_nccl++; hit = 0 }
        /^=+ *$/ { hit = 0 }
        / ERROR SUMMARY: / { n_errors = $4; ended = 1 }
        END { exit !(ended && n_errors == by_nccl + 0) }' "$log" || fail "errors" 200
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
        if (others == "") { open++; print }
    }
    / and (Read|Write) access at / && others != "" && $0 !~ others { open++; print }
    END {
        printf "%d reports, %d lines unexplained\n", reports, open
        exit (open > 0)
    }' "$log"
