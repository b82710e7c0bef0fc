package overlay

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/tunnel"
)

func (v *Overlay) fastConfig() attach.Config {
	var rules firewall.Bypass
	return attach.Config{
		Mode: v.opts.FastPath, Interval: v.opts.FastPathCheck, Wake: v.wake, Logger: v.log,
		Attach: v.attachFast, Discard: discardFast,
		Hazards: func() ([]string, error) { return v.hazards(&rules) },
	}
}

// useFast has the fast path serve the router in force. Only where must is set is it an
// error that it can't, though the operator wants it so.
func (v *Overlay) useFast(must bool) error {
	router, _ := v.inForce()
	err := v.fast.Use(router)
	if err != nil && !must {
		v.log.Warn("the workers carry all packets", "error", err)
		return nil
	}
	return err
}

// hazards tells in words what of the host's firewall the fast path would undo.
func (v *Overlay) hazards(rules *firewall.Bypass) ([]string, error) {
	router, _ := v.inForce()
	ext := v.external()
	local, _ := ext.Sockets()
	t := firewall.Tunnel{Local: local, Port: v.config.Backend.Port}
	t.Link.Name, t.Link.Index = ext.Name, ext.Index
	seen := map[netip.Addr]bool{}
	for _, p := range router.Peers() {
		if p.Underlay.Is4() == local.Is4() && !seen[p.Underlay] {
			seen[p.Underlay] = true
			t.Remotes = append(t.Remotes, p.Underlay)
		}
	}
	return rules.Hazards(t)
}

// errNoFastPath is why there is no fast path.
var errNoFastPath = errors.New("this build has none")

// attachFast attaches a fast path to the router.
func (v *Overlay) attachFast(_ *tunnel.Router, inherited map[string]int) (attach.Path, error) {
	discardFast(inherited)
	return nil, errNoFastPath
}

// discardFast detaches what another process has left attached.
func discardFast(inherited map[string]int) { closeAll(slices.Collect(maps.Values(inherited))) }
