package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"uvxlan/lease"
)

// names are the annotations' names, which are flannel's.
type names struct {
	managed, backendType         string
	backendData, backendV6Data   string
	publicIP, publicIPv6         string
	overwrite, overwriteV6       string // published instead of the host's own
	nodePublicIP, nodePublicIPv6 string // the host's own, whatever its interfaces say
}

func newNames(prefix string) names {
	return names{
		managed: prefix + "kube-subnet-manager", backendType: prefix + "backend-type",
		backendData: prefix + "backend-data", backendV6Data: prefix + "backend-v6-data",
		publicIP: prefix + "public-ip", publicIPv6: prefix + "public-ipv6",
		overwrite: prefix + "public-ip-overwrite", overwriteV6: prefix + "public-ipv6-overwrite",
		nodePublicIP: prefix + "node-public-ip", nodePublicIPv6: prefix + "node-public-ipv6",
	}
}

// isManaged tells whether a daemon like this one has written the annotations.
func (n names) isManaged(annotations map[string]string) bool { return annotations[n.managed] == "true" }

// read returns what the annotations say.
func (n names) read(annotations map[string]string, ipv6 bool) (a lease.Attrs, err error) {
	a.BackendType = annotations[n.backendType]
	if a.PublicIP, err = address(n.publicIP, annotations[n.publicIP]); err != nil {
		return a, err
	}
	if a.BackendData, err = data(n.backendData, annotations[n.backendData]); err != nil || !ipv6 {
		return a, err
	}
	if a.PublicIPv6, err = address(n.publicIPv6, annotations[n.publicIPv6]); err != nil {
		return a, err
	}
	a.BackendV6Data, err = data(n.backendV6Data, annotations[n.backendV6Data])
	return a, err
}

func address(name, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("annotation %s: %w", name, err)
	}
	return a, nil
}

// data is a backend's JSON, nil if it is null.
func data(name, text string) (json.RawMessage, error) {
	switch {
	case text == "" || text == "null":
		return nil, nil
	case !json.Valid([]byte(text)):
		return nil, fmt.Errorf("annotation %s: %q is no JSON", name, text)
	}
	return json.RawMessage(text), nil
}

// write returns the annotations that say a, where those in before have an address to
// say instead. Those that a has nothing for are left away.
func (n names) write(a lease.Attrs, before map[string]string) map[string]string {
	out := map[string]string{
		n.managed: "true", n.backendType: a.BackendType, n.backendData: text(a.BackendData),
		n.publicIP: instead(before[n.overwrite], a.PublicIP),
	}
	if a.PublicIPv6.IsValid() {
		out[n.backendV6Data] = text(a.BackendV6Data)
		out[n.publicIPv6] = instead(before[n.overwriteV6], a.PublicIPv6)
	}
	return out
}

func text(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "null"
	}
	return string(raw)
}

// instead is what is published as a host's address.
func instead(overwrite string, own netip.Addr) string {
	switch {
	case overwrite != "":
		return overwrite
	case own.IsValid():
		return own.String()
	}
	return ""
}

// says tells whether the annotations are those that write makes of a.
func (n names) says(annotations map[string]string, a lease.Attrs) bool {
	for name, value := range n.write(a, annotations) {
		if annotations[name] != value {
			return false
		}
	}
	return true
}
