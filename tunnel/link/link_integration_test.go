package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/netnstest"
)

// Whatever somebody changes of a link is told by Check and mended by
// Configure, which leaves alone what is right.
func TestIntegrationCheckLink(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	d, err := device.Open("overlay0", device.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	prefix := netip.MustParsePrefix
	c := Config{
		Addresses: []netip.Addr{netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("fd00:5:1::")},
		Networks:  []netip.Prefix{prefix("10.5.0.0/16"), prefix("fd00:5::/32")},
		Routes:    []netip.Prefix{prefix("10.5.0.0/17"), prefix("10.5.200.0/24"), prefix("fd00:5::/32")},
		MTU:       1430, LooseReversePath: true,
	}
	if err := Configure("overlay0", c); err != nil {
		t.Fatal(err)
	}
	expect := func(when string, words ...string) {
		t.Helper()
		wrong := Check("overlay0", c)
		if got := errors.Join(wrong...); len(wrong) != len(words) {
			t.Errorf("%s: %v, want %q", when, got, words)
			return
		}
		for i, w := range words {
			if !strings.Contains(wrong[i].Error(), w) {
				t.Errorf("%s: %v, want %q", when, wrong[i], w)
			}
		}
	}
	expect("as configured")
	for _, s := range []struct {
		change string
		words  []string
	}{
		{"ip link set overlay0 mtu 1300", []string{"its MTU is 1300, not 1430"}},
		{"ip link set overlay0 down", []string{"it is down", "fd00:5:1:: is missing", "10.5.0.0/17 is missing", "10.5.200.0/24 is missing", "fd00:5::/32 is missing"}},
		{"ip addr flush dev overlay0", []string{"10.5.1.0 is missing", "fd00:5:1:: is missing", "10.5.0.0/17", "10.5.200.0/24", "fd00:5::/32 is missing"}},
		{"ip route del 10.5.200.0/24", []string{"10.5.200.0/24 is missing"}},
		{"ip route add 10.5.128.0/18 dev overlay0 proto 89", []string{"10.5.128.0/18 isn't wanted"}},
		{"ip route change 10.5.200.0/24 dev overlay0 proto 89 scope link src 127.0.0.1", []string{"10.5.200.0/24 is missing"}},
		{"sysctl -qw net/ipv4/conf/overlay0/forwarding=0 net/ipv4/conf/overlay0/rp_filter=1", []string{"forwarding is 0, not 1", "rp_filter is 1, not 2"}},
	} {
		netnstest.Run(t, "sh", "-c", "ip link set lo up; "+s.change)
		expect(s.change, s.words...)
		if err := Configure("overlay0", c); err != nil {
			t.Fatal(err)
		}
		expect("after the repair of " + s.change)
	}
	netnstest.Run(t, "sh", "-c", "ip link add br0 type bridge; ip link set br0 up; ip route del 10.5.200.0/24; ip route add 10.5.200.0/24 dev br0")
	expect("a foreign route in the place of ours", "10.5.200.0/24 by br0")
	if err := Configure("overlay0", c); !errors.Is(err, ErrRouteExists) {
		t.Errorf("a foreign route in the place of ours: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if wrong := Check("overlay0", c); len(wrong) != 1 || !errors.Is(wrong[0], device.ErrGone) {
		t.Errorf("without the device: %v", wrong)
	}
}

// A container has /proc/sys to read only. The variables are written where it has them
// mounted otherwise.
func TestIntegrationReadOnlySysctls(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t) // its thread ends with the test
	writable := t.TempDir()
	err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("/proc/sys/net", writable, "", unix.MS_BIND, ""),
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
		unix.Mount("none", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(writable, 0); err != nil {
			t.Error(err)
		}
	}()
	d, err := device.Open("overlay0", device.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := Config{Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, MTU: 1430, LooseReversePath: true}
	if err := Prepare("overlay0", c); !errors.Is(err, unix.EROFS) {
		t.Errorf("with /proc/sys to read only: %v", err)
	}
	c.SysctlDir = writable
	if err := Prepare("overlay0", c); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{"forwarding": "1", "accept_local": "1", "rp_filter": "2"} {
		if got := strings.TrimSpace(netnstest.Run(t, "cat", "/proc/sys/net/ipv4/conf/overlay0/"+path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}
