// See go.mod: `go build -modfile containerd-1.6.mod ./containerd`.
module podgate.test/runtimes

go 1.21

require (
	github.com/containerd/go-cni v1.1.6
	github.com/containernetworking/cni v1.1.1
)
