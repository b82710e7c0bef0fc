package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// ErrMissing says that a program that this package runs isn't in PATH.
var ErrMissing = errors.New("Docker is not installed (apt-get install docker.io busybox-static iperf3)")

// script starts dockerd with what the subnet file tells, as README's lines and
// flannel's own script do. $1 is the file; the other arguments are dockerd's.
//
// Docker 28 drops what comes to containers by another interface than the
// bridge, unless it is told otherwise; earlier ones don't know the flag.
const script = `set -eu
for shared in /etc/docker /run/docker /run/containerd; do
	mkdir -p $shared
	mount -t tmpfs none $shared
done
. "$1"
shift
if [ "$FLANNEL_IPMASQ" = true ]; then masq=false; else masq=true; fi
if dockerd --help | grep -q -- --allow-direct-routing; then set -- --allow-direct-routing "$@"; fi
exec dockerd --bip="$FLANNEL_SUBNET" --mtu="$FLANNEL_MTU" --ip-masq="$masq" "$@"
`

// shared are the directories that dockerd makes outside of its own.
var shared = []string{"/etc/docker", "/run/docker", "/run/containerd"}

// Engine is a dockerd on a host of a lab.
type Engine struct {
	Host *lab.Host

	dir    string
	cmd    *lab.Cmd
	made   []string // directories that weren't there before
	client http.Client
}

// Check finds out whether all is installed that engines need. The error is
// [ErrMissing].
func Check() error {
	for _, name := range []string{"dockerd", "containerd", "runc", "docker", "busybox", "iperf3", "unshare"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: no %s", ErrMissing, name)
		}
	}
	return nil
}

// Start starts dockerd on the host, with its data below dir, as the subnet file
// of the host's uvxland tells it, and gives it the image that [Engine.Run] runs.
// The engine ends with Close or with the lab.
func Start(ctx context.Context, h *lab.Host, dir, subnetFile string) (*Engine, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	e := &Engine{Host: h, dir: dir}
	e.client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", e.Socket())
	}}
	if err := e.start(ctx, subnetFile); err != nil {
		return nil, fmt.Errorf("start dockerd on %s: %w", h.Name, err)
	}
	err := e.await(ctx)
	if err == nil {
		err = e.load(ctx)
	}
	if err != nil {
		_ = e.Close(ctx) // what is wrong with it is known
		return nil, err
	}
	return e, nil
}

// Socket is where the docker command reaches the engine: docker -H unix://PATH.
func (e *Engine) Socket() string { return filepath.Join(e.dir, "docker.sock") }

// LogFile has what dockerd and its containerd wrote.
func (e *Engine) LogFile() string { return filepath.Join(e.dir, "dockerd.log") }

func (e *Engine) start(ctx context.Context, subnetFile string) error {
	for _, path := range shared {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			e.made = append(e.made, path)
		}
	}
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return err
	}
	// The machine's own settings are not meant for this one.
	config := filepath.Join(e.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(e.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// Stopped in order, not with ctx: a killed one would leave its containers.
	e.cmd = e.Host.Command(context.WithoutCancel(ctx), "unshare", "--mount", "sh", "-c", script, "sh", subnetFile,
		"--host=unix://"+e.Socket(), "--config-file="+config,
		"--data-root="+filepath.Join(e.dir, "data"), "--exec-root="+filepath.Join(e.dir, "exec"),
		"--pidfile="+filepath.Join(e.dir, "docker.pid"),
		"--exec-opt=native.cgroupdriver=cgroupfs", "--cgroup-parent=/"+lab.ControlGroup)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return err
	}
	go func() { _ = e.cmd.Wait() }() // closes Done; ends with the process
	return nil
}

// await waits until dockerd answers.
func (e *Engine) await(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := e.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-e.cmd.Done():
			return fmt.Errorf("dockerd on %s ended: %s", e.Host.Name, e.complaint())
		case <-ctx.Done():
			return fmt.Errorf("dockerd on %s doesn't answer: %w: %s", e.Host.Name, err, e.complaint())
		}
	}
}

func (e *Engine) ping(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	answer, err := e.client.Do(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// complaint is the end of the log, for an error's sake.
func (e *Engine) complaint() string {
	text, err := os.ReadFile(e.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(len(lines)-2, 0):], "; ")
}

// Docker runs the docker command on the engine and returns what it printed.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	return output(e.prepare(cmd))
}

// prepare lets a docker command talk to this engine and no other.
func (e *Engine) prepare(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DOCKER_") }),
		"DOCKER_HOST=unix://"+e.Socket(), "DOCKER_CONFIG="+e.dir)
	return cmd
}

// output is what a command prints, or an error that quotes it.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, text)
	}
	return text, nil
}

// Close ends the containers and dockerd, and removes the engine's data.
func (e *Engine) Close(ctx context.Context) error {
	var errs []error
	if names, err := e.Docker(ctx, "ps", "--all", "--quiet"); err == nil && names != "" {
		_, err := e.Docker(ctx, append([]string{"rm", "--force"}, strings.Fields(names)...)...)
		errs = append(errs, err)
	}
	errs = append(errs, e.cmd.Stop(ctx), os.RemoveAll(e.dir))
	e.removeShared()
	return errors.Join(errs...)
}

// Cleanup removes the empty directories that are left of engines that were
// killed, as lab.Cleanup does.
func Cleanup() {
	for _, path := range []string{"/run/docker", "/run/containerd"} {
		_ = os.Remove(path) // what somebody uses is left
	}
}

// removeShared removes the directories that weren't there before. What somebody
// else uses by now is left.
func (e *Engine) removeShared() {
	for _, path := range e.made {
		_ = os.Remove(path)
	}
}
