package underlay

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/netnstest"
)

func TestParseRange(t *testing.T) {
	for text, want := range map[string][3]int{
		"32768-60999": {32768, 60999, 1}, "8080": {8080, 8080, 1}, "1-2\n": {1, 2, 1}, "": {0, 0, 0}, "5-4": {5, 4, 0}, "a-b": {0, 0, 0}, "1-": {1, 0, 0},
	} {
		first, last, ok := parseRange(text)
		if first != want[0] || last != want[1] || ok != (want[2] == 1) {
			t.Errorf("%q: %d, %d, %t", text, first, last, ok)
		}
	}
}

// portsOf are a family's source ports, which all workers have alike.
func portsOf(t *testing.T, u *UDP, f family.Family) (ports []uint16) {
	t.Helper()
	for w, pool := range u.sockets[f].tx {
		var own []uint16
		for _, fd := range pool {
			a, err := boundTo(fd)
			if err != nil {
				t.Fatal(err)
			}
			own = append(own, a.Port())
		}
		if w > 0 && !slices.Equal(own, ports) {
			t.Errorf("worker %d sends from %v, worker 0 from %v", w, own, ports)
		}
		ports = own
	}
	return ports
}

// A host whose local range is narrow gives the overlay what it can spare.
func TestIntegrationNarrowPortRange(t *testing.T) {
	const vxlan, wanted = 4789, 16
	for _, c := range []struct {
		name, ports, reserved string
		held                  int // ports that others have
		want                  int
		receivers, quiet      bool
	}{
		{name: "wide", ports: "32768 60999", want: wanted, quiet: true},
		{name: "just enough", ports: "50000 50063", want: wanted, quiet: true},
		{name: "ten", ports: "50000 50009", want: 2},
		{name: "reserved", ports: "50000 50019", reserved: "49990-50003,50010-50013,50019", want: 2},
		{name: "most are used", ports: "50000 50009", held: 9, want: 1},
		{name: "all are used", ports: "50000 50009", held: 10, want: 1, receivers: true},
		{name: "two", ports: "50000 50001", want: 1, receivers: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			netnstest.Enter(t)
			netnstest.Run(t, "sysctl", "-qw", "net.ipv4.ip_local_port_range="+c.ports, "net.ipv4.ip_local_reserved_ports="+c.reserved)
			for range c.held {
				other, err := net.ListenUDP("udp", nil) // of both families
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
			}
			var log bytes.Buffer
			u, err := Listen(Config{
				Address: netip.MustParseAddr("127.0.0.1"), AddressV6: netip.IPv6Loopback(), Port: vxlan, Workers: 3,
			})
			if err != nil {
				t.Fatal(err)
			}
			u.LogFewPorts(slog.New(slog.NewTextHandler(&log, nil)))
			for _, f := range []family.Family{family.IPv4, family.IPv6} {
				if ports := portsOf(t, u, f); len(ports) != c.want || c.receivers != (ports[0] == vxlan) {
					t.Errorf("family %d sends from %v", f, ports)
				}
				if d := u.sockets[f].descriptors(); c.receivers != (d.Send == nil) {
					t.Errorf("family %d hands over %+v", f, d)
				}
			}
			if text := log.String(); c.quiet != (text == "") || !c.quiet && (strings.Count(text, "\n") != 1 || !strings.Contains(text, localRange)) {
				t.Errorf("it says %s", text)
			}
			if c.held < 9 && c.want < 16 && !c.receivers {
				other, err := net.ListenUDP("udp", nil)
				if err != nil {
					t.Errorf("others find no port: %v", err)
				} else {
					other.Close()
				}
			}
			if _, err := Listen(Config{Address: netip.MustParseAddr("127.0.0.1"), Port: vxlan}); !errors.Is(err, ErrPortInUse) {
				t.Errorf("a second one on the port: %v", err)
			}
			second, err := Listen(Config{Address: netip.MustParseAddr("127.0.0.1"), Port: vxlan + 1, Workers: 2})
			if err != nil {
				t.Errorf("a second one on another port: %v", err)
			} else if err := second.Close(); err != nil {
				t.Error(err)
			}
			if err := u.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What the receiving sockets send arrives as from a sender.
func TestIntegrationReceiversSend(t *testing.T) {
	netnstest.Enter(t)
	netnstest.Run(t, "sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50001")
	u, err := Listen(Config{Address: netip.MustParseAddr("127.0.0.1"), Port: 4789})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4790})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	to := netip.MustParseAddrPort("127.0.0.1:4790")
	if err := unix.Sendto(u.sockets[family.IPv4].tx[0][0], []byte("frame"), 0, unixSockaddr(to)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "frame" || from.Port() != 4789 {
		t.Errorf("%q from %s, %v", buf[:n], from, err)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	fd := []unix.PollFd{{Fd: int32(u.sockets[family.IPv4].rx[0]), Events: unix.POLLIN}}
	if n, err := unix.Poll(fd, -1); n != 1 || err != nil {
		t.Fatalf("no answer arrives: %d, %v", n, err)
	}
}
