#!/usr/bin/env bash
# A network list may name its protocol by `cniVersions` (a list to choose from, CNI 1.1) instead of `cniVersion`. What does the
# libcni of containerd 1.6 (1.1.2), which is older than that key, make of such a list beside libcni 1.3.0?
# Expected: it refuses the list, or takes the newest version that it knows.
# Seen: it takes the list without a word, with an empty version, and calls every plugin with `cniVersion: ""`, which
# plugins read as 0.1.0: a chain that works under the newer runtime fails, or runs in another protocol, under the older.
# Runs without podgate. Needs Go and its module proxy. Exit status 1 if what is seen changes.
set -euo pipefail
PATH="$PATH:/usr/local/go/bin"
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf -- "$work"' EXIT
export GOPATH=$work/go GOCACHE=$work/cache GOFLAGS=-modcacherw

look() { # version of libcni; prints "list version | version that the plugin was called with"
    local dir=$work/$1
    mkdir -p "$dir/bin" "$dir/state"
    # a plugin that notes how it is called, and succeeds
    cat >"$dir/bin/notes" <<'PLUGIN'
#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.4.0","1.0.0"]}'; exit; fi
[ "$CNI_COMMAND" != ADD ] || cat >"$NOTES"
echo '{"cniVersion":"1.0.0","ips":[]}'
PLUGIN
    chmod +x "$dir/bin/notes"
    cat >"$dir/main.go" <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	text := `{"cniVersions":["0.4.0","1.0.0"],"name":"pods","plugins":[{"type":"notes"}]}`
	list, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		fmt.Printf("refused: %v", err)
		return
	}
	config := libcni.NewCNIConfigWithCacheDir([]string{os.Args[1]}, os.Args[2], nil)
	runtime := &libcni.RuntimeConf{ContainerID: "c", NetNS: "/proc/self/ns/net", IfName: "eth0"}
	config.AddNetworkList(context.Background(), list, runtime)
	fmt.Printf("%q", list.CNIVersion)
}
GO
    (cd "$dir" && go mod init look >/dev/null 2>&1 && go get "github.com/containernetworking/cni@v$1" >/dev/null 2>&1 &&
        NOTES=$dir/notes.json go run . "$dir/bin" "$dir/state" 2>/dev/null)
    printf ' | %s\n' "$(grep -o '"cniVersion":"[^"]*"' "$dir/notes.json" 2>/dev/null || echo 'the plugin was not called')"
}

status=0
compare() { # version, expected by this finding
    local found
    found=$(look "$1")
    echo "libcni $1: list version | called with: $found"
    [[ $found == "$2" ]] || { status=1; echo "  changed; it was: $2"; }
}
compare 1.1.2 '"" | "cniVersion":""'
compare 1.3.0 '"1.0.0" | "cniVersion":"1.0.0"'
exit $status
