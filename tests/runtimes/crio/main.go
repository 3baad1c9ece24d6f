// Prints, one JSON line for each configuration directory given, which network CRI-O's library gives new pods:
//
//	crio BIN-DIR DEFAULT-NETWORK CACHE-DIR CONF-DIR...
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/cri-o/ocicni/pkg/ocicni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 4 {
		return fmt.Errorf("usage: crio BIN-DIR DEFAULT-NETWORK CACHE-DIR CONF-DIR...")
	}
	out := json.NewEncoder(os.Stdout)
	for _, dir := range arguments[3:] {
		plugin, err := ocicni.InitCNINoInotify(arguments[1], dir, arguments[2], arguments[0])
		if err != nil {
			return err
		}
		answer := map[string]string{"network": plugin.GetDefaultNetworkName()}
		if err := plugin.Status(); err != nil {
			answer = map[string]string{"refused": err.Error()}
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
		if err := plugin.Shutdown(); err != nil {
			return err
		}
	}
	return nil
}
