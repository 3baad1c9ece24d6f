#!/usr/bin/env bash
# podgate on other kernels: boots each under software emulation, runs the checks there, prints one table.
# Usage: scripts/test-vm.sh short|long BIN_DIR [VERSION...]
#   short  5.10 and 6.1: the programs load, run and attach (policyd check), two worlds, the attach tests
#   long   5.10, 6.1, 6.12, 6.18 and the newest: the same, every world, the plugin called by hand, policyd under live
#          connections, adoption, SCTP, the kernel tier's tests
# Everything big is below target/vm: the guests' answers in target/vm/out/VERSION, the table in target/vm/table.md. Its rows
# are all kernels that have been run there, so that one kernel can be run again.
set -euo pipefail
cd "$(dirname "$0")/.."
form=$1 bin=$(realpath "$2")
shift 2

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dir=$target/vm
mkdir -p "$dir"
all=(5.10 6.1 6.12 6.18 newest)
# seconds: of a kernel as a whole, of each world, of each test binary
case $form in
short)
    versions=(5.10 6.1) seconds=900 world_seconds=400 test_seconds=700
    worlds=(three-tier services) concerns=() tests=(attach)
    ;;
long)
    versions=("${all[@]}") seconds=14400 world_seconds=900 test_seconds=3600
    worlds=() concerns=(plugin live adoption sctp)
    tests=(attach loader kernel_tables kernel_live kernel_raw plugin kernel)
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
mkdir -p "$payload/bin" "$payload/tests" "$payload/repo/cni-plugin/tests"
cp "$bin"/{podgate,policyd,podgatectl} "$payload/bin/"
cp -r tests/vm/guest "$payload/guest"
# what tests read of the tree
cp -r conf deploy "$payload/repo/"
cp -r cni-plugin/tests/golden "$payload/repo/cni-plugin/tests/"
targets=()
for test in "${tests[@]}"; do targets+=(--test "$test"); done
[[ ${#concerns[@]} -eq 0 ]] || targets+=(--test vm_node)
scripts/cargo.sh test -q --no-run --workspace "${targets[@]}" --message-format json 2>/dev/null |
    jq -r 'select(.executable != null) | [.target.kind[0], .target.name, .executable] | @tsv' |
    while IFS=$'\t' read -r kind name executable; do
        case $kind:$name in
        test:*) objcopy --strip-debug "$executable" "$payload/tests/$name" ;;
        bin:podgate-test-node) objcopy --strip-debug "$executable" "$payload/bin/$name" ;;
        esac
    done

# tests know by their path here what they read and which programs they start: the guest gets the same paths
command="mkdir -p $PWD $target
ln -s /payload/repo/* $PWD/
ln -s /payload/bin $target/debug
status=0
/payload/bin/policyd check || status=1
/payload/bin/policyd check -o json >/out/check.json
bash /payload/guest/worlds.sh $world_seconds ${worlds[*]} || status=1
bash /payload/guest/node.sh $test_seconds ${concerns[*]} || status=1
bash /payload/guest/tests.sh $test_seconds ${tests[*]} || status=1
exit \$status"

passed=0 failed=0
for version in "${versions[@]}"; do
    out=$dir/out/$version
    started=$SECONDS status=0
    tests/vm/boot.sh "$dir" "$version" "$payload" "$out" "$seconds" "$command" || status=$?
    took=$((SECONDS - started))
    echo "$(date -I), $form" >"$out/run"
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
done

present=()
for version in "${all[@]}"; do [[ ! -e $dir/out/$version/run ]] || present+=("$version"); done
tests/vm/table.sh "$dir" "${present[@]}" >"$dir/table.md"
echo
cat "$dir/table.md"
echo
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
