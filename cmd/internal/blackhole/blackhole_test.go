package blackhole

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("integration tests need root, and CI must not skip them")
	}
	t.Skip("needs root for network namespaces")
}

// newHost moves the test, and the commands it runs, into a network namespace of
// its own: its thread is never unlocked, and so ends with the test's goroutine.
func newHost(t *testing.T) {
	t.Helper()
	requireRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(os.NewSyscallError("unshare", err))
	}
	ip(t, "link set lo up")
	ip(t, "link add cni0 type bridge")
	ip(t, "link set cni0 up")
}

func ip(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(command)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
	return string(out)
}

// A bridge's route is preferred, whichever is there first, and nobody else's
// blackhole is removed.
func TestIntegrationBlackhole(t *testing.T) {
	newHost(t)
	for _, subnet := range []netip.Prefix{netip.MustParsePrefix("172.7.21.0/24"), netip.MustParsePrefix("2001:db8:21::/64")} {
		gateway, family := subnet.Addr().Next().String(), "-4 "
		if subnet.Addr().Is6() {
			family = "-6 "
		}
		for range 2 {
			if err := Add(subnet); err != nil {
				t.Fatal(err)
			}
		}
		inside := subnet.Addr().Next().Next().String()
		if out, err := exec.CommandContext(t.Context(), "ip", "route", "get", inside).CombinedOutput(); err == nil {
			t.Errorf("without a bridge, the way is %s", out)
		}
		ip(t, "address add "+gateway+"/"+strings.Split(subnet.String(), "/")[1]+" dev cni0 nodad")
		if got := ip(t, "route get "+inside); !strings.Contains(got, "dev cni0") {
			t.Errorf("with a bridge, the way is %s", got)
		}
		ip(t, family+"route add blackhole "+subnet.String()+" metric 77 proto 89")
		ip(t, family+"route add blackhole "+subnet.String()+" metric 78")
		for _, want := range []bool{true, false} {
			if found, err := Exists(subnet); err != nil || found != want {
				t.Errorf("it is there: %t, %v, want %t", found, err, want)
			}
			if was, err := Remove(subnet); err != nil || was != want {
				t.Errorf("it was there: %t, %v, want %t", was, err, want)
			}
		}
		table := ip(t, family+"route show")
		if strings.Count(table, "blackhole "+subnet.String()) != 2 || !strings.Contains(table, "dev cni0") {
			t.Errorf("afterwards the table is\n%s", table)
		}
	}
	if found, err := Exists(netip.Prefix{}); err != nil || found {
		t.Errorf("no subnet: %t, %v", found, err)
	}
}
