package overlay

import (
	"uvxlan/cmd/internal/control"
	"uvxlan/tunnel"
)

// setDown takes note of why no packets pass, nil if they do.
func (v *Overlay) setDown(why error) {
	v.mu.Lock()
	v.down = why
	v.mu.Unlock()
	v.wake(devicePart)
}

// inForce is the router in force and why it carries no packets.
func (v *Overlay) inForce() (*tunnel.Router, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.router, v.down
}

// carries tells whether the router in force carries packets, and this process has
// it.
func (v *Overlay) carries() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.down == nil && !v.handed
}

// Describe tells of the device, the peers and the traffic.
func (v *Overlay) Describe(s *control.Status) {
	s.Device, s.Port = v.name, v.config.Backend.Port
	s.Local, s.LocalV6 = v.external().Sockets()
	stats := v.Stats()
	s.Peers, s.Traffic = stats.Peers, control.TrafficOf(stats)
	fast := v.fast.Describe()
	s.FastPath = &fast
	if note := v.peerlog.Note(); note != "" {
		s.Notes = append(s.Notes, note)
	}
}

// Stats is what the router has counted.
func (v *Overlay) Stats() tunnel.Stats {
	router, _ := v.inForce()
	return router.Stats()
}

// Peers lists the peers, their paths and their traffic, and the leases that are no
// peers.
func (v *Overlay) Peers() []control.Peer {
	router, _ := v.inForce()
	list := router.Peers()
	peers := make([]control.Peer, len(list))
	for i, p := range list {
		peers[i] = control.PeerOf(p, router.Path(p.Subnet), control.PathVXLAN)
		if why := v.foreign(p.Subnet); why != "" {
			peers[i].Path, peers[i].Reason, peers[i].Link, peers[i].NextMAC = control.PathForeign, why, "", ""
		}
		if peers[i].Path != control.PathForeign {
			peers[i].Fast, peers[i].FastReason = v.fast.Carries(p)
		}
		if peers[i].Path == control.PathVXLAN {
			peers[i].PathMTU = int(router.PathMTU(p.Subnet))
		}
		t := router.Traffic(p.Subnet)
		peers[i].Traffic = &control.PeerTraffic{
			Sent:     control.Count{Packets: t.TxPackets, Bytes: t.TxBytes},
			Received: control.Count{Packets: t.RxPackets, Bytes: t.RxBytes},
			LastSeen: t.LastSeen,
		}
	}
	return v.peerlog.WithLeftOut(peers)
}
