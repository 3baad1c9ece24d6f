// Calls GC through the real libcni with the attachments that are still valid, which cnitool cannot give:
//
//	libcni-gc CONF-DIR NETWORK [CONTAINER-ID/IFNAME ...]
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: libcni-gc CONF-DIR NETWORK [CONTAINER-ID/IFNAME ...]")
	}
	list, err := libcni.LoadNetworkConf(arguments[0], arguments[1])
	if err != nil {
		return err
	}
	var valid libcni.GCArgs
	for _, attachment := range arguments[2:] {
		id, ifname, found := strings.Cut(attachment, "/")
		if !found {
			return fmt.Errorf("read attachment %q: no slash", attachment)
		}
		valid.ValidAttachments = append(valid.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifname})
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	return cni.GCNetworkList(context.Background(), list, &valid)
}
