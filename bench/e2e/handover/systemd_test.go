package handover_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// machine is a systemd of a host of the lab. It has a process tree, a /run and a /tmp
// of its own, and what it writes to other places goes with it.
type machine struct {
	t    *testing.T
	host *lab.Host
	pid  string // systemd's
}

// bootScript makes a file system that keeps what is written in memory, and starts
// systemd on it. Its arguments are a folder for that, the folder that stays as it is,
// and the folder of the units.
const bootScript = `set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p ".$2"
mount --bind "$2" ".$2"
mount --bind "$3" etc/systemd/system
pivot_root . mnt
umount -l /mnt
exec /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=false
`

// boot starts systemd on a host with the units, by name. keep is a folder whose files
// are the lab's.
func boot(t *testing.T, h *lab.Host, keep string, units map[string]string) *machine {
	t.Helper()
	dir := t.TempDir()
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	group := ownGroup(t)
	enter := fmt.Sprintf(`echo $$ >%s/cgroup.procs; exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child sh -c "$0" sh "$@"`, group)
	c := h.Command(t.Context(), "sh", "-c", enter, bootScript, t.TempDir(), keep, dir)
	c.Env = append(os.Environ(), "container=lab")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, host: h}
	t.Cleanup(func() {
		_ = c.Process.Signal(unix.SIGKILL) // its child goes with it, and all of that
		_ = c.Wait()
		log.Close()
		if t.Failed() {
			text, err := os.ReadFile(log.Name())
			t.Logf("systemd: %s, %v", text, err)
		}
	})
	e2e.Await(t, "systemd runs", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", c.Process.Pid, c.Process.Pid))
		if m.pid = strings.TrimSpace(string(children)); err != nil || m.pid == "" {
			return false
		}
		_, err = m.try("systemctl", "show", "-p", "Version")
		return err == nil
	})
	return m
}

// ownGroup makes a control group for systemd's own, where that is not the machine's.
func ownGroup(t *testing.T) string {
	t.Helper()
	at := "/sys/fs/cgroup/systemd"
	if _, err := os.Stat(at); err != nil {
		at = "/sys/fs/cgroup"
	}
	group := filepath.Join(at, fmt.Sprintf("uvxlan-systemd-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Those of its processes that have just been killed stay in it for a moment.
		e2e.Await(t, "the control groups are removed", func() bool {
			var all []string
			err := filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, path)
				}
				return nil
			})
			for i := range all {
				err = errors.Join(err, os.Remove(all[len(all)-1-i]))
			}
			return err == nil
		})
	})
	return group
}

func (m *machine) try(args ...string) (string, error) {
	out, err := m.host.Run(m.t.Context(), "nsenter", append([]string{"-t", m.pid, "-m", "-p", "-u", "-i", "--"}, args...)...)
	return string(out), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		status, _ := m.try("systemctl", "status", "--no-pager", "uvxland")
		m.t.Fatalf("%s: %v: %s: %s", args, err, out, status)
	}
	return out
}

// unitOf is the unit that the packages bring, with the lab's program and flags. It
// depends on nothing.
func unitOf(t *testing.T, w *e2e.World, d *cluster.Daemon, flags string) string {
	t.Helper()
	text, err := os.ReadFile("../../../cmd/uvxland/deploy/systemd/uvxland.service")
	if err != nil {
		t.Fatal(err)
	}
	start := fmt.Sprintf("ExecStart=%s -etcd-endpoints %s -state-dir %s -subnet-file %s -control-socket %s -fast-path %s %s",
		w.Cluster.Binary, w.Cluster.Endpoint, d.StateDir(), d.SubnetFile(), d.ControlSocket(), fastPathMode(), flags)
	unit := regexp.MustCompile(`(?m)^ExecStart=.*$`).ReplaceAllLiteralString(string(text), start)
	unit = strings.Replace(unit, "[Unit]\n", "[Unit]\nDefaultDependencies=no\n", 1)
	unit = strings.Replace(unit, "[Service]\n", fmt.Sprintf("[Service]\nStandardOutput=append:%[1]s\nStandardError=append:%[1]s\n", d.LogFile()), 1)
	unit = strings.Replace(unit, "ReadWritePaths=/run", "ReadWritePaths=/run "+filepath.Dir(d.StateDir()), 1)
	return regexp.MustCompile(`(?m)^(Wants|After|PrivateTmp)=.*\n`).ReplaceAllString(unit, "")
}

func fastPathMode() string {
	if mode := os.Getenv("UVXLAN_TEST_FASTPATH"); mode != "" {
		return mode
	}
	return "auto"
}

// "systemctl restart" loses no packet: systemd keeps the device, the sockets and the
// fast path for the next process. "systemctl stop" removes them all.
func TestIntegrationSystemdRestart(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	kb21 := w.Host("kb21")
	before := e2e.SettledState(t, kb21)
	ownProgram(w) // in a folder that the machine has too
	w.Start("kb22")
	d := w.Start("kb21")[0] // for its files
	e2e.End(t, unix.SIGTERM, d)
	units := map[string]string{
		"lab.target":      "[Unit]\nDefaultDependencies=no\n",
		"uvxland.service": unitOf(t, w, d, ""),
	}
	m := boot(t, kb21, w.Dir, units)
	m.run("systemctl", "start", "uvxland")
	w.Mesh("kb21", "kb22")
	first := m.run("systemctl", "show", "-P", "MainPID", "uvxland")
	flows := startFlows(t, w)
	const restarts = 3
	for range restarts {
		m.run("systemctl", "restart", "uvxland")
		for _, f := range flows {
			f.goesOn(t)
		}
	}
	allArrived(t, fmt.Sprintf("%d restarts", restarts), flows...)
	if last := m.run("systemctl", "show", "-P", "MainPID", "uvxland"); last == first {
		t.Errorf("the process is still %s", last)
	}
	if kept := strings.TrimSpace(m.run("systemctl", "show", "-P", "NFileDescriptorStore", "uvxland")); kept != "0" {
		t.Errorf("systemd keeps %s descriptors that a process has taken", kept)
	}
	m.run("systemctl", "stop", "uvxland")
	e2e.ExpectState(t, kb21, before, "after the service was stopped")
}
