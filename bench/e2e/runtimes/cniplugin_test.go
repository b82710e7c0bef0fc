package runtimes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"uvxlan/bench/e2e"
)

// cniPlugin, in the environment, makes the test binary the CNI plugin that is
// called flannel: flannel's own is no module that can be fetched. It turns a
// configuration of flannel's form and the subnet file into one for the bridge
// plugin, as flannel's does.
const cniPlugin = "UVXLAN_TEST_CNI"

// cniConfig is what a conflist says of the plugin.
type cniConfig struct {
	types.NetConf
	SubnetFile string         `json:"subnetFile"`
	DataDir    string         `json:"dataDir"`
	Delegate   map[string]any `json:"delegate"`
	IPAM       map[string]any `json:"ipam"`
}

func servePlugin() int {
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
	var c cniConfig
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
		if err != nil {
			return err
		}
		return errors.Join(invoke.DelegateDel(ctx, "bridge", network, nil), os.Remove(saved))
	default:
		return fmt.Errorf("unexpected command %q", command)
	}
}

// bridge is the configuration for the bridge plugin.
func (c *cniConfig) bridge() ([]byte, error) {
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
