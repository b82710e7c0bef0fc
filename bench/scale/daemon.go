package scale

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"uvxlan/bench/lab"
)

// daemon is a running uvxland. What it writes is taken note of as it comes.
type daemon struct {
	*lab.Cmd
	began time.Time

	mu     sync.Mutex // guards the rest
	last   string
	loaded map[string]time.Time // "peers loaded", by count
	seen   map[string]time.Time // subnets of new peers
	turns  map[string]time.Time // changes of paths, by message and subnet
	news   chan struct{}        // there is something new
}

// open starts a daemon whose subnet an earlier run has left, and follows its log.
// registry are the flags that say where the leases are; none mean etcd.
func (r *run) open(ctx context.Context, h *lab.Host, registry ...string) (*daemon, error) {
	if registry == nil {
		registry = []string{"-etcd-endpoints", r.Endpoint, "-etcd-prefix", prefix}
	}
	dir, err := r.dir(h)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(file, []byte("FLANNEL_SUBNET="+h.Subnet.String()+"\n"), 0o644); err != nil {
		return nil, err
	}
	d := &daemon{
		Cmd: h.Command(ctx, r.Binary, append(registry, "-subnet-file", file,
			"-state-dir", filepath.Join(dir, "state"), "-control-socket", filepath.Join(dir, "socket"))...),
		loaded: map[string]time.Time{}, seen: map[string]time.Time{}, turns: map[string]time.Time{}, news: make(chan struct{}, 1),
	}
	d.Env = append(os.Environ(), "NODE_NAME=node-1")
	out, err := d.StderrPipe()
	if err != nil {
		return nil, err
	}
	d.began = time.Now()
	if err := d.Start(); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "uvxland.log"))
	if err != nil {
		return nil, err
	}
	go d.follow(out, log)
	return d, nil
}

// follow notes when each line came.
func (d *daemon) follow(out io.Reader, log io.WriteCloser) {
	defer log.Close()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		d.note(lines.Text(), time.Now())
		fmt.Fprintln(log, lines.Text())
	}
}

func (d *daemon) note(line string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = line
	if _, count, ok := strings.Cut(line, `msg="peers loaded" count=`); ok {
		d.loaded[count] = now
	} else if _, rest, ok := strings.Cut(line, "msg=peer subnet="); ok {
		subnet, _, _ := strings.Cut(rest, " ")
		d.seen[subnet] = now
	}
	for _, words := range []string{directNow, backToVXLAN} {
		if _, rest, ok := strings.Cut(line, `msg="`+words+`" subnet=`); ok {
			subnet, _, _ := strings.Cut(rest, " ")
			d.turns[words+" "+subnet] = now
		}
	}
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// when waits until found has a time.
func (d *daemon) when(ctx context.Context, found func() (time.Time, bool)) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	for {
		d.mu.Lock()
		at, ok := found()
		last := d.last
		d.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-d.news:
		case <-ctx.Done():
			return at, fmt.Errorf("uvxland doesn't get there: %w: %s", ctx.Err(), last)
		}
	}
}

// await waits until the daemon has loaded n peers.
func (d *daemon) await(ctx context.Context, n int) error {
	_, err := d.loading(ctx, n)
	return err
}

// loading is how long the daemon took from its start until it had n peers.
func (d *daemon) loading(ctx context.Context, n int) (time.Duration, error) {
	at, err := d.when(ctx, func() (time.Time, bool) { at, ok := d.loaded[strconv.Itoa(n)]; return at, ok })
	return at.Sub(d.began), err
}

// heard is when the daemon had the new peer.
func (d *daemon) heard(ctx context.Context, subnet string) (time.Time, error) {
	return d.when(ctx, func() (time.Time, bool) { at, ok := d.seen[subnet]; return at, ok })
}

func (d *daemon) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), readiness)
	defer cancel()
	return d.Stop(ctx)
}

// resident is the memory of the process in bytes, now and at its most.
func (d *daemon) resident() (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d", &now); err == nil {
			now *= 1024
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d", &peak); err == nil {
			peak *= 1024
		}
	}
	return now, peak, nil
}

// used is the CPU time of the process until now.
func (d *daemon) used() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks int64 // USER_HZ, which is 100 on every architecture that Go knows
	for _, i := range []int{11, 12} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
