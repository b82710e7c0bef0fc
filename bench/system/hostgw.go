package system

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

func init() {
	register(func(context.Context, Env) []System {
		return []System{{
			Name: "host-gw", About: "kernel routes via the other host, nothing encapsulated", rank: reference, Three: true, Start: startHostGW,
		}}
	})
}

func startHostGW(_ context.Context, s *Site) error {
	for _, h := range s.Hosts() {
		for _, far := range s.others(h) {
			err := h.Netlink().RouteReplace(&netlink.Route{Dst: ipNet(far.Subnet), Gw: far.Address.AsSlice()})
			if err != nil {
				return fmt.Errorf("add route on %s: %w", h.Name, err)
			}
		}
	}
	return nil
}
