package tutorial_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
	"uvxlan/lease/etcd/etcdtest"
)

// user follows the tutorial on the hosts of a lab: /opt/flannel is a folder for each
// host.
type user struct {
	*e2e.World
	t   *testing.T
	bin string // in the PATH
}

const key = "/coreos.com/network/config"

// newUser has an etcd that speaks the old API too, and nothing else as yet.
func newUser(t *testing.T) *user {
	t.Helper()
	w := e2e.NewWorld(t)
	for _, name := range []string{"supervisord", "supervisorctl", "etcdctl"} {
		_, err := exec.LookPath(name)
		if err != nil && os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		if err != nil {
			t.Skip(err)
		}
	}
	w.StopEtcd()
	u := &user{World: w, t: t, bin: filepath.Join(w.Dir, "bin")}
	kb21 := w.Host("kb21")
	c := etcdtest.NewCluster(t, kb21.Address.String(), etcdtest.Options{Build: etcdtest.Installed(t), EnableV2: true})
	w.Cluster.Endpoint = c.Members[0].Endpoint
	for name, program := range map[string]string{
		"uvxlan": e2e.CommandBinary, "mk-docker-opts.sh": absolute(t, "../../../cmd/uvxland/deploy/docker/mk-docker-opts.sh"),
	} {
		u.must(os.MkdirAll(u.bin, 0o755))
		u.must(os.Symlink(program, filepath.Join(u.bin, name)))
	}
	for _, h := range w.Hosts() {
		u.must(os.MkdirAll(u.dir(h), 0o755))
	}
	args, _ := etcdtest.Installed(t).Command(c.Members[0].ConfigFile())
	w.Etcd = kb21.Command(t.Context(), args[0], args[1:]...)
	u.must(w.Etcd.Start())
	e2e.Await(t, "etcd answers", func() bool {
		_, err := u.tries(kb21, "ETCDCTL_API=3 etcdctl --endpoints "+w.Cluster.Endpoint+" get "+key)
		return err == nil
	})
	return u
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func (u *user) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *user) dir(h *lab.Host) string { return filepath.Join(u.Dir, h.Name) }

// environment lets hosts that share a file system be different machines.
func (u *user) environment(h *lab.Host) []string {
	return append(os.Environ(), "PATH="+u.bin+":"+os.Getenv("PATH"),
		"FLANNELD_STATE_DIR="+filepath.Join(u.dir(h), "state"), "FLANNELD_CONTROL_SOCKET="+filepath.Join(u.dir(h), "uvxlan.sock"))
}

// tries types a line on a host and returns what came of it.
func (u *user) tries(h *lab.Host, line string) (string, error) {
	c := h.Command(u.t.Context(), "sh", "-c", line)
	c.Dir, c.Env = u.dir(h), u.environment(h)
	out, err := c.CombinedOutput()
	return string(out), err
}

// types types a line that must succeed.
func (u *user) types(h *lab.Host, line string) string {
	u.t.Helper()
	out, err := u.tries(h, line)
	u.t.Logf("%s# %s\n%s", h.Name, line, out)
	u.must(err)
	return out
}

// isRefused types a line that must fail with these words.
func (u *user) isRefused(h *lab.Host, line string, words ...string) string {
	u.t.Helper()
	out, err := u.tries(h, line)
	u.t.Logf("%s# %s\n%s", h.Name, line, out)
	for _, w := range words {
		if err == nil || !strings.Contains(out, w) {
			u.t.Fatalf("%s: %v, without %q", line, err, w)
		}
	}
	return out
}

// reads types a line until it says what the pattern is for, and returns that.
func (u *user) reads(h *lab.Host, line, pattern string) (found string) {
	u.t.Helper()
	p := regexp.MustCompile(pattern)
	last := ""
	u.t.Cleanup(func() {
		if found == "" {
			u.t.Logf("%s# %s\n%s", h.Name, line, last)
		}
	})
	e2e.Await(u.t, fmt.Sprintf("%s on %s says %s", line, h.Name, pattern), func() bool {
		last, _ = u.tries(h, line) // uvxlan status fails while the daemon isn't ready
		found = p.FindString(last)
		return found != ""
	})
	u.t.Logf("%s# %s\n... %s", h.Name, line, found)
	return found
}

// installs puts the tutorial's files on a host and starts its supervisord, and so the
// daemon, which the script execs or, as the tutorial's, doesn't.
func (u *user) installs(h *lab.Host, exec string) {
	u.t.Helper()
	for name, text := range map[string]string{
		"subnet.env": "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=" + h.Subnet.String() + "\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n",
		"flanneld.sh": "#!/bin/sh\n" + exec + ` ./flanneld \
  --public-ip=` + h.Address.String() + ` \
  --etcd-endpoints=` + u.Cluster.Endpoint + ` \
  --iface=eth0 \
  --subnet-file=./subnet.env \
  --healthz-port=2401 \
  --logtostderr=true
`,
		"supervisord.conf": `[unix_http_server]
file=%(here)s/supervisor.sock
[supervisord]
nodaemon=true
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://%(here)s/supervisor.sock
[program:flanneld]
command=%(here)s/flanneld.sh
directory=%(here)s
autostart=true
autorestart=false
startsecs=1
startretries=0
exitcodes=0,2
stopsignal=QUIT
stopwaitsecs=10
redirect_stderr=true
stdout_logfile=%(here)s/flanneld.log
`,
	} {
		u.must(os.WriteFile(filepath.Join(u.dir(h), name), []byte(text), 0o755))
	}
	u.must(os.Symlink(e2e.DaemonBinary, filepath.Join(u.dir(h), "flanneld")))
	c := h.Command(u.t.Context(), "supervisord", "-c", "supervisord.conf")
	c.Dir, c.Env = u.dir(h), u.environment(h)
	u.must(c.Start())
	u.t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(u.dir(h), "flanneld.log")); u.t.Failed() {
			u.t.Logf("%s's flanneld.log: %v\n%s", h.Name, err, text)
		}
	})
}

// supervisor is the command that does something to the daemon.
func supervisor(what string) string { return "supervisorctl -c supervisord.conf " + what + " flanneld" }

// restarts starts a host's daemon again. Where the supervisor has stopped only the
// script, the daemon that is to be started says how to end the one that runs.
func (u *user) restarts(h *lab.Host) {
	u.t.Helper()
	if _, err := u.tries(h, supervisor("restart")); err == nil {
		return
	}
	u.types(h, u.reads(h, "tail -n 1 flanneld.log", `kill \d+`))
	e2e.Await(u.t, "the supervisor starts the daemon of "+h.Name, func() bool {
		_, err := u.tries(h, supervisor("start"))
		return err == nil
	})
}
