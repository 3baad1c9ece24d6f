#!/bin/bash
# The programs as a node runs them (tests/tests/vm_node), concern by concern. Usage: node.sh SECONDS CONCERN...
cd /payload/repo || exit 2
# shellcheck source=tests/vm/guest/run-test
. /payload/guest/run-test
seconds=$1
shift
modprobe sctp 2>/dev/null
status=0
for concern in "$@"; do
    run_test "node $concern" vm_node "$seconds" "$concern::" || status=1
done
exit $status
