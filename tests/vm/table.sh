#!/usr/bin/env bash
# One row for each kernel of which DIR/out has answers, and below the table what was not run, by name.
# Usage: tests/vm/table.sh DIR VERSION...
set -euo pipefail
dir=$1
shift

# "P of N" of the lines that begin with a prefix and say "exit CODE"
exits() {
    awk -v prefix="$1" 'index($0, prefix) == 1 && / exit / { all++; if (/ exit 0 /) good++ }
        END { if (all) printf "%d of %d", good, all; else printf "-" }' "$2"
}

# "P of N" tests of the lines that begin with a prefix; N counts those that were not run and not finished
tests() {
    awk -v prefix="$1" 'index($0, prefix) == 1 { sub(/^.* s: /, ""); passed += $1; all += $1 + $3 + $5 + $8; lines++ }
        END { if (lines) printf "%d of %d", passed, all; else printf "-" }' "$2"
}

left_out=()
echo "| kernel (x86_64) | gates by | verified instructions, from_pod / to_pod | worlds | plugin | live policyd | adoption | SCTP | kernel tier's tests | run |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for version in "$@"; do
    out=$dir/out/$version log=$dir/out/$version/stdout.log
    if [[ ! -s $log ]]; then
        echo "| $version | did not boot | | | | | | | | $(cat "$out/run" 2>/dev/null || true) |"
        continue
    fi
    gates=$(jq -r '[.gates[] | select(.present) | .name | sub("gate by "; "")] | join(", ")' "$out/check.json" 2>/dev/null || true)
    verified=$(jq -r '[.programs[].verified_instructions] | if all(. == 0) then "loads; not counted" else map(tostring) | join(" / ") end' \
        "$out/check.json" 2>/dev/null || true)
    tier=$(sed -n 's/^tests \([a-z_]*\): exit.*/\1/p' "$log" | while read -r name; do
        printf '%s %s\n' "$name" "$(tests "tests $name:" "$log")"
    done | paste -sd, | sed 's/,/, /g')
    printf '| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n' "$(cat "$out/release" 2>/dev/null || echo "$version, did not end")" \
        "${gates:-does not load}" "${verified:--}" "$(exits 'world ' "$log")" "$(tests 'node plugin:' "$log")" \
        "$(tests 'node live:' "$log")" "$(tests 'node adoption:' "$log")" "$(tests 'node sctp:' "$log")" "${tier:--}" "$(cat "$out/run")"
    while read -r line; do
        left_out+=("- $version, $line")
    done < <(awk '/^(tests|node) / { label = $1 " " $2; sub(/:$/, "", label) } /^  (failed|not run|not finished in [0-9]+ s): / { sub(/^  /, ""); print label ": " $0 }' "$log")
done
[[ ${#left_out[@]} -eq 0 ]] || printf '\nWhat is missing from a full count, by name:\n\n%s\n' "$(printf '%s\n' "${left_out[@]}")"
