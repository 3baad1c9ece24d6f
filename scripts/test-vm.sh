#!/usr/bin/env bash
# podgate on other kernels: boots each under software emulation, runs the checks there, prints one table.
# Usage: scripts/test-vm.sh short|long BIN_DIR [VERSION...]
#   short  5.10 and 6.1: the programs load, run and attach (policyd check), two worlds, the attach tests
#   long   5.10, 6.1, 6.12, 6.18 and the newest: the same, every world, the kernel tier's tests
# Everything big is below target/vm; the guests' answers stay in target/vm/out/VERSION.
set -euo pipefail
cd "$(dirname "$0")/.."
form=$1 bin=$(realpath "$2")
shift 2

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dir=$target/vm
mkdir -p "$dir"
case $form in
short)
    versions=(5.10 6.1) seconds=300
    worlds=(three-tier services) tests=(attach)
    ;;
long)
    versions=(5.10 6.1 6.12 6.18 newest) seconds=3000
    worlds=() tests=(attach loader kernel_tables kernel_live kernel_raw plugin kernel)
    ;;
*)
    echo "test-vm: short or long, not '$form'" >&2
    exit 2
    ;;
esac
[[ $# -eq 0 ]] || versions=("$@")

tests/vm/kernels.sh "$dir" "${versions[@]}"
tests/vm/image.sh "$dir"

payload=$dir/payload
rm -rf -- "$payload"
mkdir -p "$payload/bin" "$payload/tests" "$payload/repo"
cp "$bin"/{podgate,policyd,podgatectl} "$payload/bin/"
cp -r tests/vm/guest "$payload/guest"
cp -r conf "$payload/repo/"
arguments=()
for test in "${tests[@]}"; do arguments+=(--test "$test"); done
scripts/cargo.sh test -q --no-run --workspace "${arguments[@]}" --message-format json 2>/dev/null |
    jq -r 'select(.executable != null and .target.kind[0] == "test") | [.target.name, .executable] | @tsv' |
    while IFS=$'\t' read -r name executable; do
        objcopy --strip-debug "$executable" "$payload/tests/$name"
    done

command="/payload/bin/policyd check; checked=\$?; /payload/bin/policyd check -o json >/out/check.json
bash /payload/guest/worlds.sh ${worlds[*]}; worlds=\$?
bash /payload/guest/tests.sh ${tests[*]}; tests=\$?
[[ \$checked -eq 0 && \$worlds -eq 0 && \$tests -eq 0 ]]"

passed=0 failed=0 rows=()
for version in "${versions[@]}"; do
    out=$dir/out/$version
    started=$SECONDS status=0
    tests/vm/boot.sh "$dir" "$version" "$payload" "$out" "$seconds" "$command" || status=$?
    took=$((SECONDS - started))
    echo "== kernel $version, $took s, exit $status"
    cat "$out/stdout.log" 2>/dev/null || true
    case $status in
    0) passed=$((passed + 1)) ;;
    124)
        failed=$((failed + 1))
        echo "test-vm: kernel $version did not end in $seconds s; see $out" >&2
        ;;
    125)
        failed=$((failed + 1))
        echo "test-vm: kernel $version did not boot:" >&2
        tail -n 5 "$out/console.log" >&2
        ;;
    *)
        failed=$((failed + 1))
        tail -n 20 "$out/stderr.log" >&2 2>/dev/null || true
        ;;
    esac
    release=$(cat "$out/release" 2>/dev/null || echo '?')
    verified=$(jq -r '[.programs[] | .verified_instructions // 0] | map(tostring) | join(" / ")' "$out/check.json" 2>/dev/null || echo '-')
    gates=$(jq -r '[.gates[] | select(.present) | .name | sub("gate by "; "")] | join(", ")' "$out/check.json" 2>/dev/null || echo '-')
    worlds_ok=$(grep -c '^world .*: exit 0:' "$out/stdout.log" 2>/dev/null || true)
    worlds_all=$(grep -c '^world ' "$out/stdout.log" 2>/dev/null || true)
    tests_row=$(sed -n 's/^tests \([a-z_]*\): .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2 of \2+\3/p' "$out/stdout.log" 2>/dev/null |
        awk '{ split($4, n, "+"); printf "%s%s %d of %d", (NR > 1 ? ", " : ""), $1, $2, n[1] + n[2] }')
    rows+=("| $release | $gates | $verified | ${worlds_ok:-0} of ${worlds_all:-0} | ${tests_row:--} |")
done
echo
echo "| kernel | gates by | verified instructions, from_pod / to_pod | worlds | tests |"
echo "|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
echo
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
