#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster for the cluster tier, from tests/cluster: one binary, and a link to it
# by each program's name; agnhost, which test pods run; and from tests/conformance the suite of ClusterNetworkPolicy, with
# the kind's definitions beside it. Prints the directory they are in. Go's own cache makes a second run quick.
set -euo pipefail
cd "$(dirname "$0")/../tests/cluster"
PATH="$PATH:/usr/local/go/bin"
target=${CARGO_TARGET_DIR:-../../target}
mkdir -p "$target"
dir=$(realpath "$target")/cluster
mkdir -p "$dir"

version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod)
minor=${version#v*.}
# else every program says it is v0.0.0-master, and clients do not know what such a server can do
about=k8s.io/component-base/version
flags="-s -w -X $about.gitVersion=$version -X $about.gitMajor=1 -X $about.gitMinor=${minor%%.*}"

binary=$dir/kubernetes
[[ -x $binary ]] || echo "cluster: building Kubernetes $version from tests/cluster: about five minutes the first time" >&2
CGO_ENABLED=0 nice go build -mod=readonly -trimpath -ldflags "$flags" -o "$binary" . >&2
for program in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -sf kubernetes "$dir/$program"
done
CGO_ENABLED=0 nice go build -mod=readonly -trimpath -ldflags "-s -w" -o "$dir/agnhost" k8s.io/kubernetes/test/images/agnhost >&2

cd ../conformance
CGO_ENABLED=0 nice go test -c -mod=readonly -trimpath -ldflags "-s -w" -o "$dir/conformance" . >&2
suite=$(go list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/network-policy-api)
for channel in standard experimental; do
    install -m 0644 "$suite/config/crd/$channel/policy.networking.k8s.io_clusternetworkpolicies.yaml" \
        "$dir/clusternetworkpolicies-$channel.yaml"
done
echo "$dir"
