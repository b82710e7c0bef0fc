// Package cniconf writes the configuration by which a container runtime connects
// containers through CNI (Container Network Interface, SPEC.md, section 1) where
// flannel's own plugin isn't there: with the plugins bridge, host-local and portmap.
//
// It says what flannel's plugin would tell the bridge plugin, by the same names, so
// that containers that one configuration has connected are disconnected by the other.
package cniconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"uvxlan/cmd/internal/atomicfile"
)

// Names of flannel's.
const (
	network = "cbr0" // host-local keeps its addresses by it
	bridge  = "cni0"
	version = "0.3.1"
)

// ErrPlace says that the file can't be where it should: choose another place.
var ErrPlace = errors.New("the CNI configuration can't be written")

// Config is what the file says.
type Config struct {
	// Network is the overlay's and Subnet the host's.
	Network, Subnet netip.Prefix
	// NetworkV6 and SubnetV6 are the same of IPv6, invalid where there is none.
	NetworkV6, SubnetV6 netip.Prefix
	// MTU is that of the containers' interfaces, in bytes.
	MTU int
	// Masquerade has the plugin give what leaves the overlay the host's address, which
	// the daemon may do itself.
	Masquerade bool
}

// conflist is the file's form.
type conflist struct {
	Name    string `json:"name"`
	Version string `json:"cniVersion"`
	Plugins []any  `json:"plugins"`
}

type bridgePlugin struct {
	Type             string `json:"type"`
	Bridge           string `json:"bridge"`
	MTU              int    `json:"mtu"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	ForceAddress     bool   `json:"forceAddress"`
	Hairpin          bool   `json:"hairpinMode"`
	Masquerade       bool   `json:"ipMasq"`
	IPAM             ipam   `json:"ipam"`
}

type ipam struct {
	Type   string          `json:"type"`
	Ranges [][]subnetRange `json:"ranges"`
	Routes []route         `json:"routes"`
}

type subnetRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

type route struct {
	To netip.Prefix `json:"dst"`
}

type portmapPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

// text is the file's content.
func (c Config) text() ([]byte, error) {
	addresses := ipam{
		Type: "host-local", Ranges: [][]subnetRange{{{c.Subnet.Masked()}}}, Routes: []route{{c.Network.Masked()}},
	}
	if c.SubnetV6.IsValid() {
		addresses.Ranges = append(addresses.Ranges, []subnetRange{{c.SubnetV6.Masked()}})
		addresses.Routes = append(addresses.Routes, route{c.NetworkV6.Masked()})
	}
	text, err := json.MarshalIndent(conflist{Name: network, Version: version, Plugins: []any{
		bridgePlugin{
			Type: "bridge", Bridge: bridge, MTU: c.MTU, IsGateway: true, IsDefaultGateway: true, Hairpin: true,
			ForceAddress: true, // the bridge outlives the host's subnet, as where a Node is recreated
			Masquerade:   c.Masquerade, IPAM: addresses,
		},
		portmapPlugin{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}},
	}}, "", "  ")
	return append(text, '\n'), err
}

// Write replaces the file at path in one step. It makes the directory if need be.
func (c Config) Write(path string) error {
	text, err := c.text()
	if err == nil {
		err = atomicfile.Write(path, text)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return nil
}

// Written tells whether the file at path says what Config says.
func (c Config) Written(path string) (bool, error) {
	want, err := c.text()
	if err != nil {
		return false, err
	}
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the CNI configuration: %w", err)
	}
	return string(now) == string(want), nil
}

// Flannel finds a file beside the one at path that has flannel's plugin connect the
// containers, "" if there is none. Files that make no sense are passed over, as the
// runtime does.
func Flannel(path string) (string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for CNI configurations: %w", err)
	}
	for _, e := range entries {
		other := filepath.Join(filepath.Dir(path), e.Name())
		if other == path || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(other)) {
			continue
		}
		if text, err := os.ReadFile(other); err == nil && isFlannel(text) {
			return other, nil
		}
	}
	return "", nil
}

// isFlannel tells whether a configuration, or one in a list, is of flannel's plugin.
func isFlannel(text []byte) bool {
	type plugin struct {
		Type string `json:"type"`
	}
	var c struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if json.Unmarshal(text, &c) != nil {
		return false
	}
	return slices.ContainsFunc(append(c.Plugins, c.plugin), func(p plugin) bool { return p.Type == "flannel" })
}
