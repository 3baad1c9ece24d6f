#!/usr/bin/env bash
# Runs test tiers: scripts/test.sh [unit] [kernel] [runtime] [cluster] [differences]
#
# `differences`, the random services beside the real kube-proxy, runs when it is asked for: make test-differences.
#
# Every test target of the workspace belongs to exactly one tier, by its kind, crate and name, so no test is
# forgotten because somebody named a file freely. The root tiers run each test binary through
# scripts/run-as-root.sh, and scripts/leftovers.sh compares the machine before and after.
# Logs stay in target/test-logs, one per tier, for scripts/tally.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"
export PATH

tiers=("$@")
[[ ${#tiers[@]} -gt 0 ]] || tiers=(unit kernel runtime cluster)
logs=${CARGO_TARGET_DIR:-target}/test-logs
mkdir -p "$logs"

# "tier package kind name" of every target that has tests.
all=$(scripts/cargo.sh metadata --no-deps --format-version 1 | jq -r '
    .packages[] | .name as $package | .targets[] | select(.test)
    | .kind[0] as $kind | .name as $name
    | (if $kind == "lib" or $kind == "bin" then "unit"
       elif $kind != "test" then empty
       elif $name | startswith("runtime_") then "runtime"
       elif $name == "cluster_differences" then "differences"
       elif $name | startswith("cluster_") then "cluster"
       elif $package == "podgate-policy" then "unit"
       elif $name | test("^(ctl|golden|goldens|unit)(_|$)") then "unit"
       elif $package == "podgate-tests" and ($name | startswith("kernel_") | not) then "unit"
       else "kernel" end) as $tier
    | [$tier, $package, $kind, $name] | join(" ")')

run_tier() {
    local tier=$1 config=()
    if ! grep -q "^$tier " <<<"$all"; then
        echo "test: no test target belongs to the tier '$tier' (tiers: unit, kernel, runtime, cluster, differences)" >&2
        return 2
    fi
    case $tier in
    kernel) scripts/preflight.sh || return ;;
    runtime) scripts/preflight.sh runtime || return ;;
    cluster | differences)
        scripts/preflight.sh runtime || return
        PODGATE_CLUSTER_BIN=$(scripts/cluster-programs.sh) || return
        # the name that the rendered objects ask for
        PODGATE_IMAGE=$(realpath "$logs/..")/image/podgate.tar
        local version
        version=$(awk '$1 == "newTag:" { print $2 }' deploy/kustomize/base/kustomization.yaml)
        scripts/image.sh "${PODGATE_BIN_DIR:?make test-cluster sets it}" "ghcr.io/podgate/podgate:$version" "$PODGATE_IMAGE" || return
        export PODGATE_CLUSTER_BIN PODGATE_IMAGE
        ;;
    esac
    [[ $tier == unit ]] || config=(--config "target.'cfg(all())'.runner = '$PWD/scripts/run-as-root.sh'")

    # One build of the whole workspace for every tier: package by package, each would unify its crates'
    # features anew and compile half the registry again.
    local selected=() kind name status=0
    while read -r kind name; do
        case $kind in
        lib) [[ " ${selected[*]} " == *" --lib "* ]] || selected+=(--lib) ;;
        *) selected+=("--$kind" "$name") ;;
        esac
    done < <(awk -v t="$tier" '$1 == t { print $3, $4 }' <<<"$all" | sort -u)
    echo "== tier $tier"
    # the mark and the directory for scripts/leftovers.sh; a short path, as sockets are made below it
    env "PODGATE_TEST_RUN=$mark" "TMPDIR=$tmp" \
        scripts/cargo.sh "${config[@]}" test --no-fail-fast --workspace "${selected[@]}" </dev/null 2>&1 |
        tee "$logs/$tier.log" || status=1
    return $status
}

mark=$(date +%s).$$
tmp=$(mktemp -d /tmp/podgate.XXXXXX)
chmod 1777 "$tmp"
rooted=no
[[ " ${tiers[*]} " == " unit " ]] || rooted=yes
[[ $rooted == no ]] || scripts/leftovers.sh before "$logs/before"

status=0
for tier in "${tiers[@]}"; do
    run_tier "$tier" || status=$?
done

if [[ $rooted == yes ]]; then
    scripts/leftovers.sh after "$logs/before" "$mark" "$tmp" || status=1
else
    rm -rf -- "$tmp"
fi
# what a shell's exit codes do not tell: a file of tests that ran none
ran=("${tiers[@]/#/$logs/}")
scripts/tally.sh "${ran[@]/%/.log}" || status=1
exit $status
