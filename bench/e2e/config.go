package e2e

import "net/netip"

// Network configurations, as an operator writes them to etcd.
const (
	VXLANConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`
	// HybridConfig lets hosts of one network send by packet sockets, and
	// RouteConfig by kernel routes.
	HybridConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	RouteConfig  = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true,"DirectMode":"route"}}`
	HostGWConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`
	// DualNetworks are the members of a configuration that name the networks of
	// both families.
	DualNetworks = `"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/56"`
	DualConfig   = `{` + DualNetworks + `,"Backend":{"Type":"VxLAN"}}`
)

// DualMTU is what an IPv6 underlay of 1500 bytes leaves.
const DualMTU = 1430

// OverlayNetwork is that of all these configurations.
var OverlayNetwork = netip.MustParsePrefix("172.7.0.0/16")
