package netnstest

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// here names the calling thread's namespace.
func here(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestIntegrationNew(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := here(t)
	a, b := New(t), New(t)
	if err := a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.FD()),
	}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{home: true}
	for _, n := range []*Namespace{a, b} {
		if err := n.Do(func() error {
			seen[here(t)] = true
			if links := Run(t, "ip", "link"); !strings.Contains(links, "<LOOPBACK,UP") || !strings.Contains(links, "eth0@") {
				t.Errorf("its links are\n%s", links)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 3 || here(t) != home {
		t.Errorf("the namespaces are %v, and the test is in %s", seen, here(t))
	}
}

func TestIntegrationDoErrors(t *testing.T) {
	n, reason := New(t), errors.New("reason")
	if err := n.Do(func() error { return reason }); !errors.Is(err, reason) {
		t.Errorf("the error is %v", err)
	}
	if err := n.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ended its goroutine is no error")
	}
	n.file.Close()
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("a closed namespace was entered")
	}
}

// A test that enters a namespace leaves its parent where it is.
func TestIntegrationEnter(t *testing.T) {
	RequireRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := here(t)
	t.Run("inside", func(t *testing.T) {
		n := Enter(t)
		entered := here(t)
		if entered == home {
			t.Error("it is where it was")
		}
		if err := n.Do(func() error {
			if here(t) != entered {
				t.Errorf("Do is in %s", here(t))
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if command := Run(t, "readlink", "/proc/self/ns/net"); command != entered+"\n" {
			t.Errorf("a command is in %s", command)
		}
	})
	if here(t) != home {
		t.Error("the parent went with it")
	}
}

// A test that lacks root skips, but not in CI.
func TestIntegrationRequireRoot(t *testing.T) {
	RequireRoot(t)
	for env, want := range map[string]string{"CI=": "--- SKIP", "CI=true": "--- FAIL"} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run", "^TestIntegrationNew$")
		cmd.Env = append(os.Environ(), env)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), want+": TestIntegrationNew ") {
			t.Errorf("with %s: %v\n%s", env, err, out)
		}
	}
}
