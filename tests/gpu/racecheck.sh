#!/usr/bin/env bash
# compute-sanitizer's racecheck of a program, less what it cannot follow:
#
#   tests/gpu/racecheck.sh PROGRAM [ARGUMENT...]     exit status 0: nothing to explain
#   tests/gpu/racecheck.sh --log FILE                the same of what racecheck printed before
#
# LV_GPU_SMALL=3 leaves out what takes too long under it.
#
# It does not see the order that an mbarrier gives warps of different tasks (arrive after writing, wait
# for the phase's parity before reading), and reports cuBLAS's and cuDNN's own kernels for it as well as
# two handovers of ours:
#
#   prefill_wgmma.cu   feed_bytes -> scale_and_mask, do_page   scales of a page of int8 KV
#   small_chain.cu     multiply_tiles -> lv_finish_slices      sums of a tile's slices
#
# Whatever else touches what they write is reported.
set -uo pipefail
log=${2:-}
if [ "${1:-}" != --log ]; then
    log=$(mktemp) || exit 1
    trap 'rm -f -- "$log"' EXIT
    compute-sanitizer --tool racecheck --num-cuda-barriers 65536 --print-limit 100000 "$@" >"$log" 2>&1
    grep -v '^=' "$log"
fi
! grep -q '^skipped: ' "$log" || exit 77
grep -q 'RACECHECK SUMMARY' "$log" || { echo "racecheck did not end"; exit 1; }
! grep -q 'Internal Sanitizer Error' "$log" || { echo "racecheck failed"; exit 1; }
grep -qE 'checks, 0 failed$' "$log" || { echo "the program failed"; exit 1; }
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
