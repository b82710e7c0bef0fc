package docker

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/lab"
	"uvxlan/tunnel/netnstest"
)

const subnetEnv = "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1434\nFLANNEL_IPMASQ=true\n"

func requireDocker(t *testing.T) {
	t.Helper()
	netnstest.RequireRoot(t)
	err := Check()
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

// traces are what engines may leave on the machine: mounts, control groups and
// directories.
func traces(t *testing.T) string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, t.TempDir()) || strings.Contains(line, "docker") {
			found = append(found, line)
		}
	}
	for _, pattern := range append([]string{"/sys/fs/cgroup/" + lab.ControlGroup, "/sys/fs/cgroup/*/" + lab.ControlGroup}, shared...) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	return strings.Join(found, "\n")
}

// An engine has the subnet and MTU of the file and leaves nothing, whether it
// is closed or killed with its lab.
func TestIntegrationEngine(t *testing.T) {
	requireDocker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := lab.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(file, []byte(subnetEnv), 0o644); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	for name, killed := range map[string]bool{"closed": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			l, err := lab.New(ctx, lab.Options{Hosts: lab.DefaultHosts()[:1], Bare: true})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			e, err := Start(ctx, l.Hosts()[0], filepath.Join(t.TempDir(), "docker"), file)
			if err != nil {
				t.Fatal(err)
			}
			pid := checkContainer(ctx, t, e)
			if !killed {
				if err := e.Close(ctx); err != nil {
					t.Error(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			// A zombie is left to whoever is init here.
			if status, err := os.ReadFile("/proc/" + pid + "/status"); err == nil && !strings.Contains(string(status), "State:\tZ") {
				t.Errorf("the container's process still runs:\n%s", status)
			}
			if killed {
				e.removeShared()
			}
			if after := traces(t); after != before {
				t.Errorf("there was\n%s\nnow there is\n%s", before, after)
			}
		})
	}
}

// checkContainer runs a container and returns its first process.
func checkContainer(ctx context.Context, t *testing.T, e *Engine) string {
	t.Helper()
	c, err := e.Run(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	if !e.Host.Subnet.Contains(c.Address) {
		t.Errorf("the container has the address %s", c.Address)
	}
	if said, err := c.Exec(ctx, "ip", "link", "show", "eth0"); err != nil || !strings.Contains(said, "mtu 1434 ") {
		t.Errorf("the container's interface is %q, %v", said, err)
	}
	rules, err := e.Host.Run(ctx, "iptables", "-t", "nat", "-S", "POSTROUTING")
	if err != nil || strings.Contains(string(rules), "MASQUERADE") {
		t.Errorf("dockerd masquerades as well: %s, %v", rules, err)
	}
	if from, err := c.SeenBy(ctx, c); err != nil || from != c.Address {
		t.Errorf("it sees itself come from %s, %v", from, err)
	}
	if rate, err := c.Rate(ctx, c, time.Second); err != nil || rate.BitsPerSecond == 0 {
		t.Errorf("iperf3 says %+v, %v", rate, err)
	}
	pid, err := e.Docker(ctx, "inspect", "--format", "{{.State.Pid}}", "web")
	if err != nil || pid == "0" {
		t.Fatalf("no process: %q, %v", pid, err)
	}
	return pid
}

// What was wrong with a dockerd that doesn't start is in the error.
func TestIntegrationEngineError(t *testing.T) {
	requireDocker(t)
	l, err := lab.New(t.Context(), lab.Options{Hosts: lab.DefaultHosts()[:1], Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(file, []byte("FLANNEL_SUBNET=172.7.21.1\nFLANNEL_MTU=x\nFLANNEL_IPMASQ=true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), l.Hosts()[0], filepath.Join(t.TempDir(), "docker"), file)
	if err == nil || !strings.Contains(err.Error(), "mtu") {
		t.Errorf("the error is %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	got, err := roundTrip("64 bytes from 172.7.21.3: seq=0 ttl=64 time=9.5 ms\n64 bytes from 172.7.21.3: seq=1 ttl=64 time=0.177 ms\n")
	if err != nil || got != 177*time.Microsecond {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := roundTrip("no answer"); err == nil {
		t.Errorf("got %s", got)
	}
}
