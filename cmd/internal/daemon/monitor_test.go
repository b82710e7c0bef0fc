package daemon

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/hostgw"
	"uvxlan/lease"
)

func TestJudge(t *testing.T) {
	const (
		away      = "etcd doesn't answer"
		unwatched = "not watched"
	)
	own := lease.Lease{Subnet: netip.MustParsePrefix("172.7.21.0/24"), Expires: time.Now().Add(time.Hour)}
	expired, reserved := own, own
	expired.Expires = time.Now().Add(-time.Second)
	reserved.Expires, reserved.Permanent = time.Time{}, true
	up := lease.Status{Connected: true, Since: time.Now(), Lease: own, Watched: time.Now()}
	with := func(change func(*lease.Status)) lease.Status {
		s := up
		change(&s)
		return s
	}
	config := &lease.Config{}
	network := &hostgw.Gateway{}
	down := errors.New("connection refused")
	for _, c := range []struct {
		name   string
		parts  parts
		reason string // empty if it is ready
		note   string
	}{
		{name: "ready", parts: parts{health: up, config: config, network: network, ready: true}},
		{name: "a reservation", parts: parts{health: with(func(s *lease.Status) { s.Lease = reserved }), config: config, network: network, ready: true}},
		{name: "etcd away", parts: parts{health: with(func(s *lease.Status) { s.Connected, s.Watched = false, time.Time{} }), config: config, network: network, ready: true}, note: away},
		{name: "a clone", parts: parts{health: with(func(s *lease.Status) { s.Conflict = "another host claims it" }), config: config, network: network, ready: true}, note: "another host claims it"},
		{name: "configured anew", parts: parts{health: with(func(s *lease.Status) { s.ConfigChange = "VNI 7, here 1" }), config: config, network: network, ready: true}, note: "VNI 7, here 1"},
		{name: "no space", parts: parts{health: with(func(s *lease.Status) { s.WriteErr = lease.ErrReadOnly }), config: config, network: network, ready: true}, note: "etcd refuses to write"},
		{name: "between watches", parts: parts{health: with(func(s *lease.Status) { s.Watched = time.Time{} }), config: config, network: network, ready: true}, note: unwatched},
		{
			name:  "etcd away too long",
			parts: parts{health: with(func(s *lease.Status) { s.Connected, s.Lease = false, expired }), config: config, network: network, ready: true}, reason: "has expired", note: away,
		},
		{name: "no lease", parts: parts{health: with(func(s *lease.Status) { s.Lease = lease.Lease{} }), config: config, network: network, ready: true}, reason: "no lease"},
		{name: "a fault", parts: parts{health: up, config: config, network: network, ready: true, faults: []host.Finding{{Fault: host.Fault{What: "flannel.1: gone", Stops: true}}}}, reason: "flannel.1: gone"},
		{name: "a fault that stops nothing", parts: parts{health: up, config: config, network: network, ready: true, faults: []host.Finding{{Fault: host.Fault{What: "a bridge", Remedy: "restart it"}}}}, note: "a bridge: restart it"},
		{name: "before the subnet file", parts: parts{health: up, config: config, network: network}, reason: "subnet file"},
		{name: "stopping", parts: parts{health: up, config: config, network: network, ready: true, stopping: true}, reason: "stops"},
		{name: "at the start", reason: "waiting for the network configuration"},
		{name: "before etcd", parts: parts{health: lease.Status{Err: down}}, reason: "waiting for the network configuration: connection refused"},
		{name: "no space at the start", parts: parts{health: lease.Status{Connected: true, WriteErr: lease.ErrReadOnly}, config: config}, reason: "waiting for the device and a lease: lease registry takes no writes"},
		{name: "a lease that has run out", parts: parts{health: lease.Status{Err: down, Refused: "it ran out"}}, reason: "it ran out: waiting for etcd: connection refused"},
		{name: "before a lease", parts: parts{health: lease.Status{Connected: true}, config: config}, reason: "waiting for the device and a lease"},
	} {
		s := control.Status{Now: time.Now(), Etcd: registryOf(c.parts.health, 0), Watch: watchOf(c.parts.health), Lease: leaseOf(c.parts.health, "")}
		judge(&s, c.parts)
		if s.Ready != (c.reason == "") || s.Ready != (len(s.Reasons) == 0) {
			t.Errorf("%s: ready %t, %q", c.name, s.Ready, s.Reasons)
		}
		if c.reason != "" && (len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], c.reason)) {
			t.Errorf("%s: reasons %q, want %q", c.name, s.Reasons, c.reason)
		}
		if got := strings.Join(s.Notes, "\n"); (c.note == "") != (got == "") || !strings.Contains(got, c.note) {
			t.Errorf("%s: notes %q, want %q", c.name, got, c.note)
		}
	}
}

// A missing configuration is no outage of etcd.
func TestEtcdWithoutConfiguration(t *testing.T) {
	if e := registryOf(lease.Status{Err: lease.ErrNoConfig, LastErr: lease.ErrNoConfig, Failures: 3}, 0); !e.Up || e.Errors != 3 || e.LastError == "" {
		t.Errorf("without a configuration %+v", e)
	}
	if e := registryOf(lease.Status{Err: lease.ErrUnavailable}, 0); e.Up {
		t.Errorf("without etcd %+v", e)
	}
}
