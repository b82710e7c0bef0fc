package control

import (
	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
)

// PeerOf tells of a peer and its path; otherwise is what a path is that isn't
// direct.
func PeerOf(p tunnel.Peer, path onlink.Path, otherwise string) Peer {
	out := Peer{Subnet: p.Subnet, PublicIP: p.Underlay, Path: otherwise, Link: path.Link, Reason: path.Reason, Since: path.Since}
	if p.MAC != (encap.MAC{}) {
		out.MAC = p.MAC.String()
	}
	if path.Direct {
		out.Path = PathDirect
	}
	if path.MAC != (encap.MAC{}) {
		out.NextMAC = path.MAC.String()
	}
	return out
}

// TrafficOf is what a router has counted.
func TrafficOf(s tunnel.Stats) *Traffic {
	t := &Traffic{
		Sent:     Direction{Packets: s.TxPackets, Bytes: s.TxBytes, Datagrams: s.TxDatagrams, Messages: s.TxMessages, Batches: s.TxBatches},
		Received: Direction{Packets: s.RxPackets, Bytes: s.RxBytes, Datagrams: s.RxDatagrams, Messages: s.RxMessages, Batches: s.RxBatches},
		Direct:   s.TxDirect, Fallbacks: s.Fallbacks, Answers: s.Answers,
		Drops: map[string]uint64{}, Offloads: map[string]bool{},
	}
	for _, d := range tunnel.DropReasons() {
		t.Drops[d.String()] = s.Drop(d)
	}
	for bit := offload.TSO; bit <= offload.UDP; bit <<= 1 {
		t.Offloads[bit.String()] = s.Offloads.Has(bit)
	}
	return t
}
