package fastpath

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/onlink"
)

// plugTAP gives a host an interface whose wire the test is, as a NIC of a virtual machine
// is one: nothing is left undone of what passes, and nothing verified.
func plugTAP(t *testing.T, h *testhost.Host, name string) *os.File {
	t.Helper()
	fd := testhost.Inside(h, func() (int, error) {
		return testhost.AttachTUN(testhost.TUNPath, name, unix.IFF_TAP|unix.IFF_NO_PI)
	})
	testhost.Must(t, unix.SetNonblock(fd, true))
	testhost.Must(t, h.LinkSetMTU(h.Link(name), 1450+encap.OverheadIPv6))
	testhost.Must(t, h.LinkSetUp(h.Link(name)))
	return os.NewFile(uintptr(fd), name)
}

// wire passes frames between two interfaces until the test ends.
func wire(t *testing.T, ends [2]*os.File) {
	t.Helper()
	var running sync.WaitGroup
	for i := range ends {
		running.Go(func() {
			for buf := make([]byte, 1<<16); ; {
				n, err := ends[i].Read(buf)
				if err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Error(err)
					}
					return
				}
				if _, err := ends[1-i].Write(buf[:n]); errors.Is(err, os.ErrClosed) {
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		testhost.Must(t, errors.Join(ends[0].Close(), ends[1].Close()))
		running.Wait()
	})
}

func TestIntegrationFastPathOnTAP(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, wide := range []bool{false, true} {
		t.Run(underlayName(wide), func(t *testing.T) {
			a, b := newPairOver(t, wide, onlink.Off, Config{}, func(a, b *testhost.Host) {
				script(t, a, "ip link del eth0") // and the other's with it
				wire(t, [2]*os.File{plugTAP(t, a, "eth0"), plugTAP(t, b, "eth0")})
				for n, h := range []*testhost.Host{a, b} {
					h.Address("eth0", (&node{n: n + 1, wide: wide}).outer().String()+map[bool]string{true: "/64", false: "/24"}[wide])
				}
			})
			if r := a.fast.Report(); r.Superpackets {
				t.Errorf("superpackets pass a TAP: %+v", r)
			}
			bothWays(t, a, b)
			datagrams(t, echo(t, a.container, b.container, b.addr()), 50, 1402, 1)
			datagrams(t, echo(t, a.container, b.container, b.addr6()), 20, 1200, 12)
			for _, n := range []*node{a, b} {
				n.expectCarried(150, 150)
			}
		})
	}
}

// On interfaces of kinds that the programs weren't tried on the workers carry everything,
// and the fast path says why.
func TestIntegrationFastPathLeavesUntriedLinks(t *testing.T) {
	t.Parallel() // it waits more than it works
	for kind, c := range map[string]struct {
		link, other string // commands that make it, on one host and on the other
		name        string
		reason      string
		unplugged   bool // it may lead nowhere
	}{
		"vlan": {"ip link add link eth0 name l0 type vlan id 5", "ip link add link eth0 name l0 type vlan id 5", "l0", "l0 is a vlan interface", false},
		"bond": {
			"ip link add l0 type bond mode active-backup; ip link set eth0 down; ip link set eth0 master l0", "", "l0", "l0 is a bond interface", false,
		},
		"bond member": {"ip link add l0 type bond mode active-backup; ip link set eth0 down; ip link set eth0 master l0", "", "eth0", "eth0 belongs to l0 (bond)", true},
		"vrf":         {"ip link add l0 type vrf table 5; ip link set l0 up; ip link set eth0 master l0", "", "eth0", "eth0 belongs to l0 (vrf)", true},
		"ipvlan":      {"ip link add l0 link eth0 type ipvlan mode l2", "", "l0", "l0 is a ipvlan interface", false},
		"dummy":       {"ip link add l0 type dummy", "", "l0", "l0 is a dummy interface", true},
		"ifb":         {"ip link add l0 type ifb", "", "l0", "l0 is a ifb interface", true},
	} {
		t.Run(kind, func(t *testing.T) {
			a, b := newPair(t, onlink.Off, Config{}, nil)
			a.expectCarrying(b)
			for h, commands := range map[*testhost.Host]string{a.host: c.link, b.host: c.other} {
				for command := range strings.SplitSeq(commands, ";") {
					if f := strings.Fields(command); len(f) > 0 {
						makeOrSkip(t, h, f)
					}
				}
			}
			for n, h := range []*testhost.Host{a.host, b.host} {
				if n == 1 && c.other == "" {
					continue
				}
				script(t, h, "ip addr flush dev eth0\n ip link set "+c.name+" up")
				h.Address(c.name, (&node{n: n + 1}).outer().String()+"/24")
			}
			a.awaitOff(c.reason)
			before := a.router.Stats()
			if c.unplugged {
				_, _ = pingAnyway(t, a.container, b.addr(), 2) // for the programs to see
			} else {
				ping(t, a.container, b.addr(), 20)
			}
			if after := a.router.Stats(); after.FastPath != before.FastPath {
				t.Errorf("the fast path carried %+v, before %+v", after.FastPath, before.FastPath)
			}
		})
	}
}

// makeOrSkip runs a command that makes an interface. It skips the test where the kernel has
// none of that kind.
func makeOrSkip(t *testing.T, h *testhost.Host, command []string) {
	t.Helper()
	var out string
	var err error
	testhost.Must(t, h.Do(func() error {
		var b []byte
		b, err = exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		out = string(b)
		return nil
	}))
	if err != nil && (strings.Contains(out, "Unknown device type") || strings.Contains(out, "Operation not supported")) {
		t.Skipf("%s: %s", strings.Join(command, " "), out)
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}
