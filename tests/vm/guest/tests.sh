#!/bin/bash
# Test binaries of the kernel tier in a guest, each as scripts/run-as-root.sh runs it, and each bounded. Usage: tests.sh SECONDS NAME...
cd /payload/repo || exit 2
# shellcheck source=tests/vm/guest/run-test
. /payload/guest/run-test
seconds=$1
shift
status=0
for name in "$@"; do
    run_test "tests $name" "$name" "$seconds" || status=1
done
exit $status
