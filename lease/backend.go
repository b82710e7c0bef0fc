package lease

import (
	"encoding/json"
	"fmt"
	"strings"

	"uvxlan/internal/nearest"
)

// Defaults of the vxlan backend.
const (
	// DefaultPort is IANA's VXLAN port. flannel's own default is the kernel's,
	// 8472: a cluster that has both names the port.
	DefaultPort = 4789
	// DefaultVNI is flannel's VXLAN network identifier.
	DefaultVNI = 1
)

// Backend types, as they stand in Backend.Type and Attrs.BackendType.
const (
	TypeVXLAN  = "vxlan"
	TypeHostGW = "host-gw"
)

// Values of Backend.DirectMode.
const (
	// DirectSocket writes packets for on-link peers through a raw socket.
	DirectSocket = "socket"
	// DirectRoute gives on-link peers a kernel route each.
	DirectRoute = "route"
)

// Backend says how packets travel between hosts.
type Backend struct {
	// Type is TypeVXLAN or TypeHostGW; the other fields are vxlan's.
	Type string
	// VNI is the VXLAN network identifier, 24 bits.
	VNI uint32
	// Port is the outer UDP port that all hosts listen on.
	Port uint16
	// MTU is the underlay's, in bytes; 0 means the external interface's.
	MTU int
	// DirectRouting sends to on-link peers without VXLAN.
	DirectRouting bool
	// DirectMode is DirectSocket or DirectRoute.
	DirectMode string
	// GBP and Learning are flannel's options. GBP is refused when it is set,
	// since its header bits aren't spoken here. Learning has no effect on a host
	// that is told every peer.
	GBP, Learning bool
}

type backendFields struct {
	Type, VNI, Port, MTU      json.RawMessage
	DirectRouting, DirectMode json.RawMessage
	GBP, Learning             json.RawMessage
}

// typeRule says what a type must be instead of name.
func typeRule(name string) string {
	const rule = `must be "vxlan" or "host-gw"`
	if name == "udp" {
		return rule + `; what flannel's udp is for, vxlan does here: it needs no VXLAN of the kernel's`
	}
	if near := nearest.Name(name, []string{TypeVXLAN, TypeHostGW}); near != "" {
		return fmt.Sprintf("%s: did you mean %q?", rule, near)
	}
	return rule
}

func parseBackend(p *problems, data json.RawMessage, ipv6 bool) Backend {
	b := Backend{VNI: DefaultVNI, Port: DefaultPort, DirectMode: DirectSocket}
	var raw backendFields
	switch {
	case absent(data):
		p.add("Backend", data, `must name a type, {"Type":"vxlan"} or {"Type":"host-gw"}; flannel would take udp here, which doesn't exist`)
		return b
	case json.Unmarshal(data, &raw) != nil:
		p.add("Backend", data, `must be an object such as {"Type":"vxlan"}`)
		return b
	}
	if !decodeString(p, "Backend.Type", raw.Type, &b.Type) {
		return b
	}
	b.Type = strings.ToLower(b.Type)
	switch b.Type {
	case TypeHostGW: // flannel's host-gw reads no options
	case TypeVXLAN:
		b.vxlan(p, raw, ipv6)
	default:
		p.add("Backend.Type", raw.Type, typeRule(b.Type))
	}
	return b
}

func (b *Backend) vxlan(p *problems, raw backendFields, ipv6 bool) {
	vni, port := int(b.VNI), int(b.Port)
	decodeInt(p, "Backend.VNI", raw.VNI, 0, 1<<24-1, &vni)
	if string(raw.Port) == "0" {
		p.add("Backend.Port", raw.Port, "must name a port, since zero means 8472 to flannel and 4789 to others")
	} else {
		decodeInt(p, "Backend.Port", raw.Port, 1, 1<<16-1, &port)
	}
	b.VNI, b.Port = uint32(vni), uint16(port)
	b.decodeMTU(p, raw.MTU, ipv6)
	decodeBool(p, "Backend.DirectRouting", raw.DirectRouting, &b.DirectRouting)
	decodeString(p, "Backend.DirectMode", raw.DirectMode, &b.DirectMode)
	b.DirectMode = strings.ToLower(b.DirectMode)
	if b.DirectMode != DirectSocket && b.DirectMode != DirectRoute {
		p.add("Backend.DirectMode", raw.DirectMode, `must be "socket" or "route"`)
	}
	decodeBool(p, "Backend.GBP", raw.GBP, &b.GBP)
	if b.GBP {
		p.add("Backend.GBP", raw.GBP, "must be false, since the group policy extension isn't spoken; flannel peers need it off as well")
	}
	decodeBool(p, "Backend.Learning", raw.Learning, &b.Learning)
}

// decodeMTU reads the underlay's MTU. It must have room for what the inner
// family needs: 576 bytes for IPv4, 1280 plus 70 bytes of headers for IPv6.
func (b *Backend) decodeMTU(p *problems, raw json.RawMessage, ipv6 bool) {
	least := 576
	if ipv6 {
		least = 1280 + 70
	}
	if !decodeInt(p, "Backend.MTU", raw, 0, 1<<16-1, &b.MTU) || b.MTU == 0 || b.MTU >= least {
		return
	}
	p.add("Backend.MTU", raw, fmt.Sprintf("must be 0, for the external interface's, or at least %d", least))
}
