#!/bin/bash
# Test binaries of the kernel tier in a guest, each as scripts/run-as-root.sh runs it. Usage: tests.sh NAME...
cd /payload/repo || exit 2
export CLANG=foreign-clang PODGATE_BIN_DIR=/payload/bin TMPDIR=/tmp
status=0
for name in "$@"; do
    unshare --mount --propagation private bash -c 'mount -t bpf bpf /sys/fs/bpf && exec "$@"' test "/payload/tests/$name" \
        --test-threads 2 >"/out/test-$name.txt" 2>&1
    code=$?
    [[ $code -eq 0 ]] || status=1
    echo "tests $name: exit $code: $(grep '^test result' "/out/test-$name.txt" | tail -n 1)"
    sed -n 's/^test \(.*[^ ]\) *\.\.\. FAILED$/  failed: \1/p' "/out/test-$name.txt"
done
exit $status
