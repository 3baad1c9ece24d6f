#!/usr/bin/env bash
# Sums the "test result:" lines of cargo test logs. Usage: scripts/tally.sh LOG...
# Prints "N passed, N failed"; exit 1 if a test failed, or if none ran.
set -euo pipefail

awk '
    /^test result:/ { passed += $4; failed += $6 }
    # what did not compile, or died of a signal, has no result line for its tests
    /^error: (could not compile|[0-9]+ targets? failed|test failed)/ { broken = 1 }
    END {
        if (broken && !failed) failed = 1
        printf "%d passed, %d failed\n", passed, failed
        exit !(passed > 0 && failed == 0)
    }' /dev/null "$@"
