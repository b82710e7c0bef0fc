// Package tutorial_test follows an old tutorial of flannel's, with what the programs
// say where it no longer leads on.
package tutorial_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/bench/e2e"
)

const (
	// aCommand and anEtcdctl are how the programs say what to type.
	aCommand  = `uvxlan config set [^']*'[^']*'`
	anEtcdctl = `ETCDCTL_API=3 etcdctl [^']*'[^']*'`
	udpConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}`
)

// A user with a tutorial for etcd's old API, supervisord and all three models gets
// through with what the programs say: what they tell to type is typed as they wrote it.
func TestIntegrationTutorial(t *testing.T) {
	u := newUser(t)
	kb21, kb22, kb31 := u.Host("kb21"), u.Host("kb22"), u.Host("kb31")
	endpoint := u.Cluster.Endpoint

	// etcdctl of today has no set. With its old API it writes what nobody reads.
	u.isRefused(kb21, "etcdctl --endpoints "+endpoint+" set "+key+" '"+e2e.VXLANConfig+"'", "unknown command")
	u.types(kb21, "ETCDCTL_API=2 etcdctl --endpoints "+endpoint+" set "+key+" '"+e2e.VXLANConfig+"'")
	u.isRefused(kb21, "uvxlan set "+key+" '"+e2e.VXLANConfig+"'", "did you mean config set?")
	u.isRefused(kb21, "uvxlan config set "+key+" '"+e2e.VXLANConfig+"'", "leave the key "+key+" away")
	u.installs(kb21, "")
	u.installs(kb22, "exec")
	u.installs(kb31, "exec")
	inStatus := u.reads(kb21, "uvxlan status", anEtcdctl)
	inLog := u.reads(kb22, "cat flanneld.log", aCommand)
	u.types(kb21, inStatus)
	u.types(kb22, inLog) // with the log's backslashes
	u.Mesh("kb21", "kb22", "kb31")
	u.reads(kb21, "uvxlan status", "model +vxlan\n")

	// The first model was udp, which etcd takes from whoever doesn't ask uvxlan.
	u.isRefused(kb21, "uvxlan config set -etcd-endpoints "+endpoint+" '"+udpConfig+"'", "flannel's udp is for, vxlan does")
	u.types(kb21, "ETCDCTL_API=3 etcdctl --endpoints "+endpoint+" put "+key+" '"+udpConfig+"'")
	u.reads(kb21, "uvxlan status", "the network configuration has changed.*until it restarts")
	_, err := u.tries(kb31, supervisor("restart"))
	if err == nil {
		t.Error("a daemon runs with the backend udp")
	}
	told := u.reads(kb31, "tail -n 1 flanneld.log", "vxlan does here.* write another, by uvxlan config set .* JSON")
	_, command, _ := strings.Cut(told, "another, by ")
	u.types(kb31, strings.Replace(command, "JSON", "'"+strings.Replace(udpConfig, "udp", "vxlan", 1)+"'", 1))
	u.types(kb31, supervisor("start"))
	u.Mesh("kb21", "kb22", "kb31")

	// The second is the hybrid, with the tutorial's spelling, once at the wrong place.
	set := "uvxlan config set -etcd-endpoints " + endpoint + " "
	if said := u.types(kb21, set+`'{"Network":"172.7.0.0/16","Directrouting":true,"Backend":{"Type":"VxLAN"}}'`); !strings.Contains(said, `did you mean "Backend.DirectRouting"?`) {
		t.Error("the wrong place isn't noticed")
	}
	u.types(kb21, set+"'"+e2e.HybridConfig+"'")
	for _, h := range u.Hosts() {
		u.reads(h, "uvxlan status", "Backend.DirectRouting true, here false.*until it restarts")
		u.restarts(h)
	}
	u.Mesh("kb21", "kb22", "kb31")
	u.reads(kb21, "uvxlan peers", kb22.Subnet.String()+" +"+kb22.Address.String()+" +direct ")
	// "Optimised" by hand.
	u.types(kb21, "busybox route add -net "+kb22.Subnet.String()+" gw "+kb22.Address.String()+" dev eth0")
	u.types(kb21, u.reads(kb21, "uvxlan status", "ip route del .*"))
	u.reads(kb21, "uvxlan peers", kb22.Subnet.String()+" +"+kb22.Address.String()+" +direct ")
	u.Mesh("kb21", "kb22", "kb31")

	// The third is host-gw, with a route that leads elsewhere.
	u.types(kb21, "busybox route add -net "+kb22.Subnet.String()+" gw "+kb21.Gateway.String())
	u.types(kb22, set+"'"+e2e.HostGWConfig+"'")
	u.restarts(kb21)
	u.reads(kb21, "uvxlan status", "2 leases are no peers, .*daemons with an old network configuration need a restart")
	u.restarts(kb22)
	u.restarts(kb31)
	u.types(kb21, u.reads(kb21, "uvxlan peers", "ip route del [0-9./]+"))
	u.Mesh("kb21", "kb22")
	u.reads(kb21, "uvxlan peers", kb31.Subnet.String()+" .* none .* via gateway")

	// Docker takes what the subnet file says.
	u.types(kb21, "mk-docker-opts.sh -f subnet.env -d docker_opts.env -c")
	text, err := os.ReadFile(filepath.Join(u.dir(kb21), "docker_opts.env"))
	if want := "DOCKER_OPTS=\" --bip=172.7.21.1/24 --ip-masq=true --mtu=1500\"\n"; err != nil || string(text) != want {
		t.Errorf("the options are %q, %v, want %q", text, err, want)
	}
	// supervisord's QUIT has ended kb31's daemons in order.
	log, err := os.ReadFile(filepath.Join(u.dir(kb31), "flanneld.log"))
	if err != nil || strings.Contains(string(log), "goroutine ") {
		t.Errorf("kb31's daemon ended with its stacks, %v", err)
	}
}
