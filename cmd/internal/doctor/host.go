package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/tunnel"
)

// kubernetes is where the leases may be instead of etcd, as [control.Status] names it.
const kubernetes = "Kubernetes"

// releasing is how a lease is removed.
func releasing(s *control.Status, subnet netip.Prefix) string {
	if name, _ := s.Leases(); name == kubernetes {
		return fmt.Sprintf("kubectl delete node NAME (the one with podCIDR %s)", subnet)
	}
	return "uvxlan leases release -force " + subnet.String()
}

// configuring is where the network's configuration is changed.
func configuring(s *control.Status) string {
	if name, _ := s.Leases(); name == kubernetes {
		return "in net-conf.json, in the ConfigMap"
	}
	return "uvxlan config set"
}

// judgeStatus says what the daemon finds wrong with its host.
func judgeStatus(s control.Status) (found []Finding) {
	told := map[string]bool{} // reasons and notes that are faults of the host's parts
	for _, f := range s.Faults {
		words := f.What
		if f.Remedy != "" {
			words += ": " + f.Remedy
		}
		told[words] = true
		severity := Warning
		if f.Stops {
			severity = Fault
		}
		found = append(found, Finding{
			Severity: severity, Kind: "host-" + f.Part, What: f.What, Remedy: f.Remedy,
			Evidence: fmt.Sprintf("the daemon has seen it for %s", control.Round(s.Now.Sub(f.Since))),
		})
	}
	for _, r := range s.Reasons {
		if !told[r] {
			found = append(found, Finding{
				Severity: Fault, Kind: "not-ready", What: "the daemon isn't ready: " + r,
				Evidence: way(s), Remedy: remedyFor(s),
			})
		}
	}
	for _, n := range s.Notes {
		if !told[n] {
			found = append(found, Finding{
				Severity: Warning, Kind: "note", What: n, Evidence: way(s) + "; watch: " + s.WatchWords(), Remedy: remedyFor(s),
			})
		}
	}
	return found
}

// way tells of the way to where the leases are.
func way(s control.Status) string {
	name, _ := s.Leases()
	return name + ": " + s.RegistryWords()
}

// remedyFor is what helps a daemon that waits.
func remedyFor(s control.Status) string {
	switch name, way := s.Leases(); {
	case way.Up:
	case name == kubernetes:
		return "mend the way to the API server (-kube-api-url, -kubeconfig-file)"
	default:
		return "start etcd, or mend the way to it (-etcd-endpoints)"
	}
	return "journalctl -u uvxland tells more"
}

// notRunning is the finding of a host without a daemon.
func notRunning(err error, tun error) []Finding {
	found := []Finding{{
		Severity: Fault, Kind: "not-running", What: "uvxland doesn't run on this host, so its containers reach no other host's",
		Evidence: err.Error(), Remedy: "systemctl start uvxland, and if it ends again: journalctl -u uvxland; if it runs, name its -control-socket",
	}}
	if tun != nil {
		found = append(found, Finding{
			Severity: Fault, Kind: "no-tun", What: "this host can't have the overlay's device", Evidence: tun.Error(),
			Remedy: "modprobe tun, or give the container the device (--device /dev/net/tun)",
		})
	}
	return found
}

// judgeRules says which of the host's own firewall rules are in the way. changes is how
// much harm those do that change frames.
func judgeRules(rules []firewall.Obstacle, err error, changes Severity) (found []Finding) {
	if err != nil {
		found = append(found, Finding{
			Severity: Warning, Kind: "firewall-unread", What: "it isn't known whether this host's firewall lets the overlay's frames pass",
			Evidence: err.Error(), Remedy: "run the doctor as root with CAP_NET_ADMIN (docker run --cap-add NET_ADMIN)",
		})
	}
	for _, r := range rules {
		if !r.Sure {
			continue // of a peer, if it matters
		}
		severity, kind, what := Fault, "firewall-in", "this host's firewall doesn't let the other hosts' frames in"
		if r.Out {
			kind, what = "firewall-out", "this host's firewall doesn't let frames out to the other hosts"
		}
		if !r.Drops {
			severity, kind, what = changes, "firewall-changes", "this host's firewall changes the overlay's frames, so they may not be taken"
		}
		found = append(found, Finding{Severity: severity, Kind: kind, What: what, Evidence: r.What, Remedy: r.Remedy})
	}
	return found
}

// judgeStrangers tells of frames from addresses that no lease has, where no peer is
// blamed for them.
func (s *scene) judgeStrangers(blamed map[netip.Addr]bool) (found []Finding) {
	if s.drops(tunnel.DropUnknownPeer) == 0 {
		return nil
	}
	var strangers []string
	for _, f := range s.x.tap.sightings(func(f *sighting) bool {
		return !f.out && f.frame != nil && f.frame.port == s.x.port && !s.known[f.src] && !blamed[f.src]
	}) {
		if w := f.src.String(); !slices.Contains(strangers, w) {
			strangers = append(strangers, w)
		}
	}
	if len(strangers) == 0 {
		return nil
	}
	return []Finding{{
		Severity: Warning, Kind: "unknown-source", What: "frames come from addresses that no lease has, and are dropped: a host that lost its lease, a NAT, or a stranger",
		Evidence: fmt.Sprintf("%s; the daemon dropped %d such frames meanwhile", strings.Join(strangers[:min(len(strangers), named)], ", "), s.drops(tunnel.DropUnknownPeer)),
		Remedy:   "see whose address it is (uvxlan leases); behind a NAT, give that host its outer address with -public-ip",
	}}
}

// judgeSources tells of frames of ours that leave by another address than the other
// hosts know.
func (s *scene) judgeSources(harm Severity) []Finding {
	left := s.x.tap.sightings(func(f *sighting) bool {
		return f.out && f.frame != nil && f.frame.port == s.x.port && f.src != s.x.localOf(f.src)
	})
	if len(left) == 0 {
		return nil
	}
	return []Finding{{
		Severity: harm, Kind: "masqueraded", What: "frames leave this host from an address that its lease doesn't have, so peers that run uvxlan drop them",
		Evidence: fmt.Sprintf("frames leave from %s, the lease says %s", left[0].src, s.x.status.PublicIP),
		Remedy:   fmt.Sprintf("exempt them from masquerading: iptables -t nat -I POSTROUTING -p udp --dport %d -j ACCEPT", s.x.port),
	}}
}

// judgeChecksums tells of damaged datagrams where no peer is blamed for them.
func (s *scene) judgeChecksums(blamed bool) []Finding {
	n := s.grown(udpChecksums)
	if n == 0 || blamed {
		return nil
	}
	return []Finding{{
		Severity: Warning, Kind: "checksums", What: "datagrams come to this host with wrong UDP checksums, and are dropped",
		Evidence: fmt.Sprintf("the kernel dropped %d for that meanwhile (Udp InCsumErrors); they may be other programs'", n),
		Remedy:   "look at the offloads of the hosts that send them (ethtool -k), and of " + s.x.status.Interface,
	}}
}
