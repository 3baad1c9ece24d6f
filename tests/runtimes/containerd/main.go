// Prints, one JSON line for each configuration directory given, which networks containerd's library gives new pods:
//
//	containerd MAX-CONF-NUM CONF-DIR...
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	gocni "github.com/containerd/go-cni"
)

type network struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Types   []string `json:"types"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: containerd MAX-CONF-NUM CONF-DIR...")
	}
	max, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for _, dir := range arguments[1:] {
		cni, err := gocni.New(gocni.WithMinNetworkCount(1), gocni.WithPluginConfDir(dir),
			gocni.WithPluginMaxConfNum(max))
		if err != nil {
			return err
		}
		// what containerd's CRI plugin calls, but for the loopback that it adds itself
		if err := cni.Load(gocni.WithDefaultConf); err != nil {
			if err := out.Encode(map[string]string{"refused": err.Error()}); err != nil {
				return err
			}
			continue
		}
		networks := []network{}
		for _, found := range cni.GetConfig().Networks {
			types := []string{}
			for _, plugin := range found.Config.Plugins {
				types = append(types, plugin.Network.Type)
			}
			networks = append(networks, network{found.Config.Name, found.Config.CNIVersion, types})
		}
		if err := out.Encode(map[string]any{"networks": networks}); err != nil {
			return err
		}
	}
	return nil
}
