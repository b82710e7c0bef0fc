// Package hoststate remembers what the daemon has put on its host that outlives
// the process. So that can be removed, and nothing else is.
package hoststate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"uvxlan/cmd/internal/atomicfile"
)

// ErrDir says that the state directory can't be used: choose another one.
var ErrDir = errors.New("the state directory can't be used")

// DefaultDir is the state directory unless told otherwise.
const DefaultDir = "/var/lib/uvxlan"

// Path returns the path of the manifest in the state directory.
func Path(dir string) string { return filepath.Join(dir, "host.json") }

// EtcdDir returns the directory where the embedded etcd has its data.
func EtcdDir(dir string) string { return filepath.Join(dir, "etcd") }

// State is what is on the host. It is saved before anything is put there, so
// what it names may be missing.
type State struct {
	// SubnetFile is the path of subnet.env. SubnetFileTime is when we last
	// modified that file, zero if that isn't known.
	SubnetFile     string    `json:"subnetFile,omitempty"`
	SubnetFileTime time.Time `json:"subnetFileTime,omitzero"`
	// CNIConfig is the path of the CNI configuration.
	CNIConfig string `json:"cniConfig,omitempty"`
	// Device is the name of the overlay's interface.
	Device string `json:"device,omitempty"`
	// Sysctls are the variables that were changed.
	Sysctls []Sysctl `json:"sysctls,omitempty"`
	// Networks are the networks that the host's kernel routes and firewall rules
	// are for.
	Networks []Network `json:"networks,omitempty"`
	// Firewall says that there are firewall rules for the networks.
	Firewall bool `json:"firewallRules,omitempty"`
	// Blackhole is the subnet that has a blackhole route.
	Blackhole netip.Prefix `json:"blackhole,omitzero"`
	// BlackholeV6 is the IPv6 subnet that has one.
	BlackholeV6 netip.Prefix `json:"blackholeV6,omitzero"`

	// ControlSocket is the path of the control socket.
	ControlSocket string `json:"controlSocket,omitempty"`

	// NodePublicIP and NodePublicIPv6 are what the Node's annotations said last that
	// this host's public addresses are, zero where they said nothing.
	NodePublicIP   netip.Addr `json:"nodePublicIP,omitzero"`
	NodePublicIPv6 netip.Addr `json:"nodePublicIPv6,omitzero"`

	// unknown are the fields of a newer version.
	unknown map[string]json.RawMessage
}

// Network is an overlay network, of one address family, and the host's part of
// it.
type Network struct {
	Network netip.Prefix `json:"network"`
	Subnet  netip.Prefix `json:"subnet"`
}

// ErrDamaged says that the manifest makes no sense, as an empty file doesn't.
var ErrDamaged = errors.New("it is damaged")

// read reads the manifest in the state directory.
func read(dir string) (State, error) {
	text, err := os.ReadFile(Path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read manifest: %w", err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("read manifest %s: %w: %w", Path(dir), ErrDamaged, err)
	}
	return s, nil
}

// Save replaces the manifest in one step, along with the fields of a newer
// version that Load found in it. It makes the directory if need be.
func (s State) Save(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := atomicfile.Write(Path(dir), append(text, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrDir, err)
	}
	return nil
}

// Unknown returns the names of the fields that this version doesn't know.
func (s State) Unknown() []string { return slices.Sorted(maps.Keys(s.unknown)) }

// OnlyUnknown returns a State with only the fields that this version doesn't
// know.
func (s State) OnlyUnknown() State { return State{unknown: s.unknown} }

type plain State // without the methods

// MarshalJSON writes the unknown fields beside the known ones.
func (s State) MarshalJSON() ([]byte, error) {
	known, err := json.Marshal(plain(s))
	if err != nil || len(s.unknown) == 0 {
		return known, err
	}
	all := maps.Clone(s.unknown)
	if err := json.Unmarshal(known, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// UnmarshalJSON keeps the fields it doesn't know.
func (s *State) UnmarshalJSON(text []byte) error {
	if err := json.Unmarshal(text, (*plain)(s)); err != nil {
		return err
	}
	s.unknown = nil
	if err := json.Unmarshal(text, &s.unknown); err != nil {
		return err
	}
	for _, name := range known() {
		delete(s.unknown, name)
	}
	return nil
}

// known are the names of State's fields in JSON.
var known = sync.OnceValue(func() (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[plain]()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
	}
	return names
})
