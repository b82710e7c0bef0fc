package lease

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"reflect"
)

// Attrs is the value of a lease. As JSON it has flannel's exact form.
type Attrs struct {
	// PublicIP and PublicIPv6 are the host's addresses on the underlay; the
	// zero Addr if the host has none of the family. A reservation that nobody
	// uses yet may have neither.
	PublicIP, PublicIPv6 netip.Addr
	// BackendType is in lower case, such as TypeVXLAN.
	BackendType string
	// BackendData and BackendV6Data are the backend's JSON, nil if it has none.
	BackendData, BackendV6Data json.RawMessage
}

// VXLANData is the backend data of a vxlan lease; json.Marshal writes it in
// flannel's form.
type VXLANData struct {
	VNI uint32
	// VtepMAC is the address that inner frames for the host must carry.
	VtepMAC string
}

// attrsJSON has flannel's choice of fields, in flannel's order.
type attrsJSON struct {
	PublicIP      *string
	PublicIPv6    *string
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

// MarshalJSON writes flannel's form. A missing PublicIP is written 0.0.0.0,
// which is flannel's zero value.
func (a Attrs) MarshalJSON() ([]byte, error) {
	v4 := netip.IPv4Unspecified().String()
	if a.PublicIP.IsValid() {
		v4 = a.PublicIP.String()
	}
	out := attrsJSON{&v4, nil, a.BackendType, a.BackendData, a.BackendV6Data}
	if a.PublicIPv6.IsValid() {
		v6 := a.PublicIPv6.String()
		out.PublicIPv6 = &v6
	}
	return json.Marshal(out)
}

// UnmarshalJSON sets every field.
func (a *Attrs) UnmarshalJSON(data []byte) error {
	var in attrsJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return fmt.Errorf("lease attributes: %w", err)
	}
	v4, err := publicAddr(in.PublicIP, netip.IPv4Unspecified())
	if err != nil {
		return fmt.Errorf("lease attribute PublicIP: %w", err)
	}
	v6, err := publicAddr(in.PublicIPv6, netip.IPv6Unspecified())
	if err != nil {
		return fmt.Errorf("lease attribute PublicIPv6: %w", err)
	}
	*a = Attrs{v4, v6, in.BackendType, present(in.BackendData), present(in.BackendV6Data)}
	return nil
}

// publicAddr takes the unspecified address for none.
func publicAddr(s *string, none netip.Addr) (netip.Addr, error) {
	if s == nil {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(*s)
	switch {
	case err != nil:
		return netip.Addr{}, err
	case a.BitLen() != none.BitLen() || a.Zone() != "" || a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is of the wrong kind", a)
	case a == none:
		return netip.Addr{}, nil
	}
	return a, nil
}

func present(raw json.RawMessage) json.RawMessage {
	if absent(raw) {
		return nil
	}
	return raw
}

// Equal reports whether both mean the same. The spelling of the JSON within
// doesn't count.
func (a Attrs) Equal(o Attrs) bool {
	return a.PublicIP == o.PublicIP && a.PublicIPv6 == o.PublicIPv6 &&
		a.BackendType == o.BackendType &&
		sameJSON(a.BackendData, o.BackendData) && sameJSON(a.BackendV6Data, o.BackendV6Data)
}

// SameHost reports whether both leases belong to one host. Flannel tells a host
// by its public address.
func (a Attrs) SameHost(o Attrs) bool {
	if a.PublicIP.IsValid() || o.PublicIP.IsValid() {
		return a.PublicIP == o.PublicIP
	}
	return a.PublicIPv6.IsValid() && a.PublicIPv6 == o.PublicIPv6
}

// sameOwner reports whether both have the same VTEP, wherever it is reached. If
// they have none, it reports whether they say the same. By it a host tells
// whether a lease is the one in its own record.
func (a Attrs) sameOwner(record Attrs) bool {
	x, y := a.vtep(), record.vtep()
	if x == nil || y == nil {
		return a.Equal(record)
	}
	return bytes.Equal(x, y)
}

// vtep returns the VTEP's MAC, nil if there is none.
func (a Attrs) vtep() net.HardwareAddr {
	d, err := a.VXLAN()
	if err != nil {
		return nil
	}
	mac, _ := d.MAC() // VXLAN has checked it
	return mac
}

func sameJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return reflect.DeepEqual(x, y)
}

// VXLAN reads BackendData of a vxlan lease.
func (a Attrs) VXLAN() (VXLANData, error) { return a.vxlan("BackendData", a.BackendData) }

// VXLANv6 reads BackendV6Data of a vxlan lease.
func (a Attrs) VXLANv6() (VXLANData, error) { return a.vxlan("BackendV6Data", a.BackendV6Data) }

func (a Attrs) vxlan(field string, raw json.RawMessage) (VXLANData, error) {
	if a.BackendType != TypeVXLAN {
		return VXLANData{}, fmt.Errorf("lease attribute BackendType %q: not %q", a.BackendType, TypeVXLAN)
	}
	var d VXLANData
	if err := json.Unmarshal(raw, &d); err != nil {
		return VXLANData{}, fmt.Errorf("lease attribute %s: %w", field, err)
	}
	if _, err := d.MAC(); err != nil {
		return VXLANData{}, fmt.Errorf("lease attribute %s: %w", field, err)
	}
	return d, nil
}

// MAC returns VtepMAC as six bytes.
func (d VXLANData) MAC() (net.HardwareAddr, error) {
	m, err := net.ParseMAC(d.VtepMAC)
	if err != nil {
		return nil, fmt.Errorf("VtepMAC: %w", err)
	}
	if len(m) != 6 {
		return nil, fmt.Errorf("VtepMAC %q: not six bytes", d.VtepMAC)
	}
	return m, nil
}
