#!/usr/bin/env bash
# The rules that a machine can see. Prints each breach; exit status 1 where there is any.
set -uo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

breaches=0
breach() {
    printf 'style: %s\n' "$*"
    breaches=$((breaches + 1))
}

mapfile -t hosts < <(find apps core kernels llm pipeline preprocess projector tests vision \
    -name '*.[ch]' -o -name '*.cc' | sort)
mapfile -t kernels < <(find kernels -name '*.cu' -o -name '*.cuh' | sort)
mapfile -t texts < <(git ls-files 2>/dev/null | grep -Ev '/vendor/|\.(png|jpe?g|webp|gif|safetensors|model|npy)$')

# Layout.
clang-format-14 --dry-run -Werror "${hosts[@]}" "${kernels[@]}" || breach "clang-format -i wanted (above)"
for file in "${hosts[@]}" "${kernels[@]}"; do
    [ "$(wc -l <"$file")" -le 800 ] || breach "$file: over 800 lines"
done

# Length and complexity of functions. pmccabe prints: modified complexity, complexity, statements,
# first line, lines, file(line): name.
limits() { # limits COMPLEXITY LINES FILES...
    local complexity=$1 lines=$2
    shift 2
    [ $# -eq 0 ] && return
    pmccabe "$@" 2>/dev/null |
        awk -v c="$complexity" -v l="$lines" '$1 > c || $5 > l {
            printf "%s %s: complexity %d, %d lines\n", $6, $7, $1, $5 }'
}
while read -r line; do
    breach "$line"
done < <(limits 25 120 $(printf '%s\n' "${hosts[@]}" | grep '\.c') && limits 40 250 "${kernels[@]}")

# Headers that other folders may see: short, and each one compiles alone.
for header in */*.h; do
    case $header in tests/*) continue ;; esac
    [ "$(wc -l <"$header")" -le 200 ] || breach "$header: over 200 lines"
    gcc -std=gnu11 -D_GNU_SOURCE -I. -Wall -Wextra -Werror -fsyntax-only -x c \
        -include "$header" /dev/null || breach "$header: does not compile alone"
done

# Arrows: each folder, and what it may include.
arrows='
core          core
kernels       core kernels
preprocess    core preprocess
vision        core kernels vision
projector     core kernels projector
llm           core kernels llm
pipeline      core kernels preprocess vision projector llm pipeline
apps/describe core pipeline apps
apps/image_chat core pipeline apps
apps/bench    core kernels preprocess vision projector llm pipeline apps
'
while read -r folder allowed; do
    [ -n "$folder" ] || continue
    others=$(grep -rnE '#include "[a-z_]+/' "$folder" |
        grep -vE "#include \"(${allowed// /|})/" || true)
    [ -z "$others" ] || breach "$folder may include only $allowed:"$'\n'"$others"
done <<<"$arrows"
backend=$(grep -rnE '#if.*\b(LV_)?CUDA' --include='*.[ch]' apps core llm pipeline preprocess projector vision || true)
[ -z "$backend" ] || breach "a backend's #if outside kernels/:"$'\n'"$backend"

# Texts: no unfinished ends, no path of somebody's machine.
unfinished=$(grep -nE '\b(TO''DO|FIX''ME|XX''X)\b' "${texts[@]}" || true)
[ -z "$unfinished" ] || breach "unfinished:"$'\n'"$unfinished"
machine=$(grep -nE '(^|[^A-Za-z0-9_.$}])/(wo''rk|ho''me|ro''ot)/[a-z]' "${texts[@]}" || true)
[ -z "$machine" ] || breach "a machine's own path:"$'\n'"$machine"

[ "$breaches" -eq 0 ] || { echo "style: $breaches breaches"; exit 1; }
echo "style: ${#hosts[@]} files, nothing to say"
