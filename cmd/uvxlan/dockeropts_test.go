package main

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"uvxlan/tunnel/netnstest"
)

const (
	subnetEnv = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
	bip       = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n"
	mtu       = "DOCKER_OPT_MTU=\"--mtu=1472\"\n"
)

// The files are those of flannel's script, byte for byte.
func TestDockerOpts(t *testing.T) {
	for _, c := range []struct {
		name, file string
		d          dockerOpts
		env        map[string]string
		want       string
	}{
		{
			name: "both", file: subnetEnv,
			want: bip + "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n" + mtu + "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
		},
		{
			name: "both asked for", file: subnetEnv, d: dockerOpts{individual: true, combined: true},
			want: bip + "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n" + mtu + "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
		},
		{
			name: "individual", file: subnetEnv, d: dockerOpts{individual: true},
			want: bip + "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n" + mtu,
		},
		{
			name: "combined, other key", file: subnetEnv, d: dockerOpts{combined: true, key: "DOCKER_NETWORK_OPTIONS"},
			want: "DOCKER_NETWORK_OPTIONS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
		},
		{
			name: "no ip-masq", file: subnetEnv, d: dockerOpts{noIPMasq: true},
			want: bip + mtu + "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n",
		},
		{
			name: "the daemon masquerades", file: strings.Replace(subnetEnv, "false", "true", 1), d: dockerOpts{combined: true},
			want: "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n",
		},
		{
			name: "options of the environment", file: subnetEnv, d: dockerOpts{combined: true},
			env:  map[string]string{"DOCKER_OPTS": "--debug", "DOCKER_OPT_LOG": "--log-level=warn", "FLANNEL_MTU": "9000"},
			want: "DOCKER_OPTS=\"--debug  --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472\"\n",
		},
		{
			name: "quoted by hand", file: "# mine\nexport FLANNEL_SUBNET=\"10.1.74.1/24\"\nFLANNEL_MTU='1472'\n", d: dockerOpts{combined: true},
			want: "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n",
		},
		{
			name: "no file, all in the environment", d: dockerOpts{individual: true},
			env:  map[string]string{"FLANNEL_SUBNET": "10.1.74.1/24", "FLANNEL_MTU": "1472"},
			want: bip + mtu,
		},
		{name: "nothing", want: "DOCKER_OPTS=\"\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := c.d
			d.from, d.to = filepath.Join(t.TempDir(), "subnet.env"), filepath.Join(t.TempDir(), "docker.env")
			if d.key == "" {
				d.key = "DOCKER_OPTS"
			}
			if c.file != "" {
				if err := os.WriteFile(d.from, []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.env == nil {
				c.env = map[string]string{}
			}
			if err := d.run(c.env); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(d.to); err != nil || string(got) != c.want {
				t.Errorf("the file has\n%s%v, want\n%s", got, err, c.want)
			}
		})
	}
}

// What isn't a file is written to, as a shell would, and stays what it is: a link such
// as /dev/stdout too, even if a file is at its end.
func TestDockerOptsThroughLink(t *testing.T) {
	dir := t.TempDir()
	link, file := filepath.Join(dir, "stdout"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("before, and longer than what comes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := writeEnvironment(link, "text"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "text" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is %v, %v", info, err)
	}
}

func TestDockerOptsRefused(t *testing.T) {
	d := dockerOpts{from: filepath.Join(t.TempDir(), "subnet.env"), to: filepath.Join(t.TempDir(), "docker.env"), key: "DOCKER_OPTS"}
	err := d.run(map[string]string{"FLANNEL_IPMASQ": "yes"})
	if err == nil || !strings.Contains(err.Error(), "FLANNEL_IPMASQ=yes") {
		t.Errorf("FLANNEL_IPMASQ=yes: %v", err)
	}
	if _, err := os.Stat(d.to); err == nil {
		t.Error("it wrote a file all the same")
	}
}

// A host that has a route to its own subnet by a gateway is told so.
func TestIntegrationDockerOptsRoute(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	subnet := netip.MustParsePrefix("10.1.74.0/24")
	netnstest.Run(t, "ip", "link", "add", "eth0", "type", "bridge")
	netnstest.Run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	netnstest.Run(t, "ip", "link", "set", "eth0", "up")
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	to := &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	if err := refuseRoute(subnet); err != nil {
		t.Errorf("the containers' own route: %v", err)
	}
	if err := netlink.RouteReplace(&netlink.Route{Dst: to, Gw: net.ParseIP("192.0.2.9")}); err != nil {
		t.Fatal(err)
	}
	if err := refuseRoute(subnet); err == nil || !strings.Contains(err.Error(), "10.1.74.0/24 via 192.0.2.9") {
		t.Errorf("a route by a gateway: %v", err)
	}
}

// mk-docker-opts.sh takes its flags as flannel's does, and the values as they are.
func TestMkDockerOpts(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("../uvxland/deploy/docker/mk-docker-opts.sh")
	if err != nil {
		t.Fatal(err)
	}
	const command = "#!/bin/sh\nprintf '<%s>' \"$@\"\n"
	for name, text := range map[string][]byte{"mk-docker-opts.sh": script, "uvxlan": []byte(command)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "mk-docker-opts.sh")
	if err := os.Symlink(filepath.Join(dir, "mk-docker-opts.sh"), link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
		exit int
	}{
		{nil, "<docker-opts>", 0},
		{[]string{"-k", "DOCKER_NETWORK_OPTIONS", "-d", "/run/flannel/docker"}, "<docker-opts><-k><DOCKER_NETWORK_OPTIONS><-d></run/flannel/docker>", 0},
		{[]string{"-icm"}, "<docker-opts><-i><-c><-m>", 0},
		{[]string{"-f/run/a b", "-cd$(exit 3)`\"'"}, "<docker-opts><-f></run/a b><-c><-d><$(exit 3)`\"'>", 0},
		{[]string{"-h"}, "<docker-opts><-help>", 1},
		{[]string{"-x"}, "<docker-opts><-help>", 1},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{link}, c.args...)...)
		out, _ := cmd.CombinedOutput()
		if got := string(out); !strings.HasSuffix(got, c.want) || cmd.ProcessState.ExitCode() != c.exit {
			t.Errorf("%q: exit %d, %s; want %d, %s", c.args, cmd.ProcessState.ExitCode(), got, c.exit, c.want)
		}
	}
}
