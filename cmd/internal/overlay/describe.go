package daemon

import (
	"errors"
	"fmt"
	"net"

	"uvxlan/cmd/internal/control"
	"uvxlan/tunnel"
)

// setDown takes note of why no packets pass, nil if they do.
func (v *overlay) setDown(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down = why
}

// state is the router in force and why it carries no packets.
func (v *overlay) state() (*tunnel.Router, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.router, v.down
}

// describe tells of the device, the peers and the traffic.
func (v *overlay) describe(s *control.Status) {
	s.Device = v.name
	stats := v.stats()
	s.Peers, s.Traffic = stats.Peers, trafficOf(stats)
}

func (v *overlay) stats() tunnel.Stats {
	router, _ := v.state()
	return router.Stats()
}

func (v *overlay) peers() []control.Peer {
	router, _ := v.state()
	list := router.Peers()
	peers := make([]control.Peer, len(list))
	for i, p := range list {
		peers[i] = peerOf(p, router.Path(p.Subnet), control.PathVXLAN)
		t := router.Traffic(p.Subnet)
		peers[i].Traffic = &control.PeerTraffic{
			Sent:     control.Count{Packets: t.TxPackets, Bytes: t.TxBytes},
			Received: control.Count{Packets: t.RxPackets, Bytes: t.RxBytes},
			LastSeen: t.LastSeen,
		}
	}
	return peers
}

// fault looks at the device itself, too, which an operator may have set down.
func (v *overlay) fault() error {
	if _, down := v.state(); down != nil {
		return fmt.Errorf("%s: %w", v.name, down)
	}
	link, err := net.InterfaceByName(v.name)
	if err == nil && link.Flags&net.FlagUp == 0 {
		err = errors.New("the interface is down")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	return nil
}
