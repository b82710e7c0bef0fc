// Package flannelcni is a CNI plugin that does what flannel's does, whose module can't
// be fetched: it turns a configuration of flannel's form and the subnet file into one
// for the bridge plugin. A test binary serves as the plugin.
package flannelcni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"uvxlan/bench/e2e"
)

// Variable in the environment has the binary's main function call [Serve].
const Variable = "UVXLAN_TEST_CNI"

// Script is a program that runs the calling binary as the plugin.
func Script() string { return fmt.Sprintf("#!/bin/sh\n%s=1 exec %s\n", Variable, os.Args[0]) }

// config is what a conflist says of the plugin.
type config struct {
	types.NetConf
	SubnetFile string         `json:"subnetFile"`
	DataDir    string         `json:"dataDir"`
	Delegate   map[string]any `json:"delegate"`
	IPAM       map[string]any `json:"ipam"`
}

// Serve is the plugin: it does what the environment and standard input say, and
// returns the exit code.
func Serve() int {
	if err := delegate(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// delegate passes the call on. What was added is removed by the configuration
// that it was added with, whatever the subnet file says by then.
func delegate(ctx context.Context) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	c := config{SubnetFile: "/run/flannel/subnet.env", DataDir: "/var/lib/cni/flannel"}
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	saved := filepath.Join(c.DataDir, os.Getenv("CNI_CONTAINERID"))
	switch command := os.Getenv("CNI_COMMAND"); command {
	case "ADD":
		network, err := c.bridge()
		if err != nil {
			return err
		}
		if err := errors.Join(os.MkdirAll(c.DataDir, 0o700), os.WriteFile(saved, network, 0o600)); err != nil {
			return err
		}
		result, err := invoke.DelegateAdd(ctx, "bridge", network, nil)
		if err != nil {
			return err
		}
		return result.Print()
	case "DEL":
		network, err := os.ReadFile(saved)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a runtime may remove what was never added
		}
		if err != nil {
			return err
		}
		return errors.Join(invoke.DelegateDel(ctx, "bridge", network, nil), os.Remove(saved))
	default:
		return fmt.Errorf("unexpected command %q", command)
	}
}

// bridge is the configuration for the bridge plugin.
func (c *config) bridge() ([]byte, error) {
	file, err := e2e.ReadSubnetFile(c.SubnetFile)
	if err != nil {
		return nil, err
	}
	mtu, err := strconv.Atoi(file["FLANNEL_MTU"])
	if err != nil {
		return nil, err
	}
	subnet, err := netip.ParsePrefix(file["FLANNEL_SUBNET"])
	if err != nil {
		return nil, err
	}
	d := c.Delegate
	d["name"], d["cniVersion"], d["type"] = c.Name, c.CNIVersion, "bridge"
	for key, value := range map[string]any{"ipMasq": file["FLANNEL_IPMASQ"] != "true", "mtu": mtu, "isGateway": true} {
		if _, ok := d[key]; !ok {
			d[key] = value
		}
	}
	ipam := map[string]any{"type": "host-local"}
	maps.Copy(ipam, c.IPAM)
	ipam["ranges"] = [][]map[string]string{{{"subnet": subnet.Masked().String()}}}
	ipam["routes"] = []map[string]string{{"dst": file["FLANNEL_NETWORK"]}}
	d["ipam"] = ipam
	return json.Marshal(d)
}
