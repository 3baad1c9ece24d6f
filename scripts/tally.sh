#!/usr/bin/env bash
# Sums the "test result:" lines of cargo test logs. Usage: scripts/tally.sh LOG...
# Prints "N passed, N failed"; exit 1 if a test failed, or if none ran.
# A file of tests that ran no test counts as one failure.
set -euo pipefail

awk '
    # a file of tests that runs none proves nothing (a lost harness line, a filter): that is a failure
    /^ +Running / { file = $2 }
    /^test result:/ {
        passed += $4; failed += $6; ignored += $8
        if (file ~ /^tests\// && $4 + $6 == 0) {
            print "tally: " file " ran no test" >"/dev/stderr"
            failed++
        }
        file = ""
    }
    # what did not compile, or died of a signal, has no result line for its tests
    /^error: (could not compile|[0-9]+ targets? failed|test failed)/ { broken = 1 }
    END {
        if (broken && !failed) failed = 1
        if (ignored) printf "tally: %d tests are marked ignored and did not run\n", ignored >"/dev/stderr"
        printf "%d passed, %d failed\n", passed, failed
        exit !(passed > 0 && failed == 0)
    }' /dev/null "$@"
