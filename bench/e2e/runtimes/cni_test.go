package runtimes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"uvxlan/bench/e2e"
	"uvxlan/bench/flannelcni"
	"uvxlan/bench/lab"
	"uvxlan/tunnel/netnstest"
)

// cniPlugins is where Debian has the bridge and host-local plugins.
const cniPlugins = "/usr/lib/cni"

// conflist is flannel's own, but for the directories.
const conflist = `{
  "name": "cbr0",
  "cniVersion": "1.0.0",
  "plugins": [{
    "type": "flannel",
    "subnetFile": %q,
    "dataDir": %q,
    "ipam": {"dataDir": %q},
    "delegate": {"hairpinMode": true, "isDefaultGateway": true}
  }]
}`

// requireCNI ends a test that can't run containers.
func requireCNI(t *testing.T) {
	t.Helper()
	netnstest.RequireRoot(t)
	var err error
	for _, path := range []string{"runc", "busybox", filepath.Join(cniPlugins, "bridge"), filepath.Join(cniPlugins, "host-local")} {
		_, missing := exec.LookPath(path)
		err = errors.Join(err, missing)
	}
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

// cniContainer is a container that runc runs in the network namespace of a
// host's container, to which CNI's plugins give its network.
type cniContainer struct {
	w       *e2e.World
	host    *lab.Host
	dir     string
	cni     *libcni.CNIConfig
	network *libcni.NetworkConfigList
	runtime *libcni.RuntimeConf
}

// startContainer does what a container runtime does: it lets the plugins connect
// a namespace, and starts the container in it.
func startContainer(w *e2e.World, h *lab.Host) *cniContainer {
	w.T.Helper()
	c := &cniContainer{w: w, host: h, dir: filepath.Join(w.Dir, h.Name, "container")}
	if err := c.prepare(); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(c.end)
	if err := c.connect(w.Context()); err != nil {
		w.T.Fatal(err)
	}
	c.runc(w.Context(), "run", "--detach", "--bundle", c.dir, h.Name)
	return c
}

// prepare writes the plugins' and runc's configuration.
func (c *cniContainer) prepare() error {
	plugins, rootfs := filepath.Join(c.dir, "plugins"), filepath.Join(c.dir, "rootfs")
	spec, err := json.Marshal(c.spec())
	if err != nil {
		return err
	}
	err = errors.Join(os.MkdirAll(plugins, 0o755), os.MkdirAll(filepath.Join(rootfs, "proc"), 0o755),
		os.WriteFile(filepath.Join(plugins, "flannel"), []byte(flannelcni.Script()), 0o755),
		lab.CopyPrograms(c.w.Context(), rootfs, "busybox"),
		os.WriteFile(filepath.Join(c.dir, "config.json"), spec, 0o644))
	if err != nil {
		return err
	}
	subnetFile := filepath.Join(c.w.Dir, c.host.Name, "subnet.env")
	text := fmt.Sprintf(conflist, subnetFile, filepath.Join(c.dir, "flannel"), c.ipam())
	if c.network, err = libcni.NetworkConfFromBytes([]byte(text)); err != nil {
		return err
	}
	c.cni = libcni.NewCNIConfigWithCacheDir([]string{plugins, cniPlugins}, filepath.Join(c.dir, "cache"), nil)
	c.runtime = &libcni.RuntimeConf{ContainerID: c.host.Name, NetNS: c.host.Container.Namespace(), IfName: "eth0"}
	return nil
}

// ipam is where host-local keeps the addresses that are taken.
func (c *cniContainer) ipam() string { return filepath.Join(c.dir, "networks") }

// spec is the container in the OCI runtime's form.
func (c *cniContainer) spec() map[string]any {
	raw := []string{"CAP_NET_RAW"} // for ping
	return map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"args": []string{"/bin/busybox", "sleep", "100000"}, "cwd": "/", "user": map[string]int{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": raw, "effective": raw, "permitted": raw},
		},
		"root":   map[string]any{"path": "rootfs", "readonly": true},
		"mounts": []map[string]string{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux": map[string]any{
			"cgroupsPath": "/" + lab.ControlGroup + "/" + c.host.Name,
			"namespaces": []map[string]string{
				{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
				{"type": "network", "path": c.host.Container.Namespace()},
			},
		},
	}
}

// connect adds the namespace to the network. The plugins work where they are
// started: on the host.
func (c *cniContainer) connect(ctx context.Context) error {
	return c.host.Do(func() error {
		result, err := c.cni.AddNetworkList(ctx, c.network, c.runtime)
		if err != nil {
			return err
		}
		got, err := types100.GetResult(result)
		if err != nil {
			return err
		}
		if len(got.IPs) != 1 || got.IPs[0].Address.IP.String() != c.host.Container.Address.String() {
			return fmt.Errorf("%s has the addresses %v, want %s", c.host.Name, got.IPs, c.host.Container.Address)
		}
		return nil
	})
}

func (c *cniContainer) disconnect(ctx context.Context) error {
	return c.host.Do(func() error { return c.cni.DelNetworkList(ctx, c.network, c.runtime) })
}

// runc runs the runtime and returns what it printed.
func (c *cniContainer) runc(ctx context.Context, args ...string) string {
	c.w.T.Helper()
	// A detached container keeps what it is given to write to.
	out, err := os.Create(filepath.Join(c.dir, "runc.out"))
	if err != nil {
		c.w.T.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(c.dir, "runc")}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	if err != nil {
		c.w.T.Fatalf("runc %q on %s: %v: %s", args, c.host.Name, err, text)
	}
	return string(text)
}

// pid is the container's first process.
func (c *cniContainer) pid() int {
	c.w.T.Helper()
	var state struct {
		Status string `json:"status"`
		Pid    int    `json:"pid"`
	}
	if err := json.Unmarshal([]byte(c.runc(c.w.Context(), "state", c.host.Name)), &state); err != nil {
		c.w.T.Fatal(err)
	}
	if state.Status != "running" {
		c.w.T.Errorf("the container on %s is %s", c.host.Name, state.Status)
	}
	return state.Pid
}

// reaches pings another host's container from inside this one.
func (c *cniContainer) reaches(to *lab.Host) {
	c.w.T.Helper()
	said := c.runc(c.w.Context(), "exec", c.host.Name, "/bin/busybox", "ping", "-c", "1", "-W", "5",
		"-s", strconv.Itoa(lab.DefaultContainerMTU-28), to.Container.Address.String())
	if !strings.Contains(said, " 0% packet loss") {
		c.w.T.Errorf("from %s to %s: %s", c.host.Name, to.Name, said)
	}
}

// end removes what is left of the container when a test fails.
func (c *cniContainer) end() {
	_ = exec.Command("runc", "--root", filepath.Join(c.dir, "runc"), "delete", "--force", c.host.Name).Run()
}

// Containers of a real runtime, connected by CNI's own plugins with a conflist
// of flannel's form, reach each other, outlive a restart of the daemon, and leave
// nothing.
func TestIntegrationCNI(t *testing.T) {
	requireCNI(t)
	w := e2e.NewWorldOf(t, lab.Options{Bare: true}, e2e.HybridConfig)
	w.Cluster.Args = []string{"-ip-masq"}
	daemons := w.Start("kb21", "kb22", "kb31")
	containers := make(map[string]*cniContainer)
	for _, h := range w.Hosts() {
		containers[h.Name] = startContainer(w, h)
	}
	allReach(w, containers)
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	if got := e2e.SeenFrom(t, kb21.Container.Node, kb31.Container.Node, kb31.Container.Address); got != kb21.Container.Address {
		t.Errorf("the container on kb31 sees kb21's come from %s", got)
	}
	if got := e2e.SeenFrom(t, kb21.Container.Node, w.Router(), kb21.Gateway); got != kb21.Address {
		t.Errorf("the router sees kb21's container come from %s, want its host's %s", got, kb21.Address)
	}

	pid := containers["kb21"].pid()
	if err := daemons[0].Stop(w.Context()); err != nil {
		t.Fatal(err)
	}
	w.Start("kb21")
	allReach(w, containers)
	if now := containers["kb21"].pid(); now != pid {
		t.Errorf("the container's process was %d and is %d", pid, now)
	}

	for _, c := range containers {
		c.expectGone()
	}
}

// allReach checks that every container reaches every other.
func allReach(w *e2e.World, containers map[string]*cniContainer) {
	w.T.Helper()
	// What is lost before the way is open is no fault.
	w.Mesh("kb21", "kb22", "kb31")
	for _, c := range containers {
		for _, to := range w.Hosts() {
			if to != c.host {
				c.reaches(to)
				e2e.Transfer(w.T, c.host.Container.Node, to.Container, 4<<20)
			}
		}
	}
}

// expectGone removes the container and checks that the plugins gave back what
// they took.
func (c *cniContainer) expectGone() {
	c.w.T.Helper()
	address := filepath.Join(c.ipam(), c.network.Name, c.host.Container.Address.String())
	if _, err := os.Stat(address); err != nil {
		c.w.T.Errorf("host-local on %s took no address: %v", c.host.Name, err)
	}
	c.runc(c.w.Context(), "delete", "--force", c.host.Name)
	if err := c.disconnect(c.w.Context()); err != nil {
		c.w.T.Fatal(err)
	}
	if _, err := os.Stat(address); !errors.Is(err, os.ErrNotExist) {
		c.w.T.Errorf("host-local on %s didn't give the address back: %v", c.host.Name, err)
	}
	if ports := e2e.Command(c.w.T, c.host.Node, "ip -o link show master cni0"); ports != "" {
		c.w.T.Errorf("left on %s: %s", c.host.Name, ports)
	}
}
