package procstat

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		stat string
		want CPU
		err  error
	}{
		{"cpu  100 1 20 9000 50 3 4 7 5 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 1\nintr 7\n", CPU{1280 * ms, 70 * ms, 90500 * ms, 91850 * ms, 2}, nil},
		{"cpu  100 1 20 9000 50 3 4\n", CPU{}, ErrFormat},
		{"cpu  100 1 x 9000 50 3 4 7\n", CPU{}, ErrFormat},
		{"", CPU{}, ErrFormat},
	} {
		if got, err := parseCPU([]byte(c.stat)); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %+v, %v; want %+v, %v", c.stat, got, err, c.want, c.err)
		}
	}
}

func TestPercent(t *testing.T) {
	c := CPU{Busy: 5, Steal: 1, All: 20}.Since(CPU{Busy: 1, All: 10})
	if busy, steal := c.Percent(c.Busy), c.Percent(c.Steal); busy != 40 || steal != 10 {
		t.Errorf("%g and %g %%, want 40 and 10", busy, steal)
	}
	if got := (CPU{}).Percent(1); got != 0 {
		t.Errorf("%g %% of no time", got)
	}
}

func TestUsed(t *testing.T) {
	c := CPU{Idle: 1200 * time.Millisecond, Steal: 100 * time.Millisecond, CPUs: 2}
	if got, want := c.Used(time.Second), 700*time.Millisecond; got != want {
		t.Errorf("used %s, want %s", got, want)
	}
	if got := c.Used(0); got != 0 {
		t.Errorf("used %s in no time", got)
	}
}

func TestParseProcess(t *testing.T) {
	for _, c := range []struct {
		stat string
		want time.Duration
		err  error
	}{
		{"7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 5 6 7", 420 * time.Millisecond, nil},
		{"7 (a) S 1 7", 0, ErrFormat},
		{"", 0, ErrFormat},
	} {
		if got, err := parseProcess([]byte(c.stat)); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %s, %v; want %s, %v", c.stat, got, err, c.want, c.err)
		}
	}
}

func TestParseMemory(t *testing.T) {
	const head = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 20 kB\nPss: 9 kB\nShared_Clean: 4 kB\n"
	for _, c := range []struct {
		text string
		want Memory
		err  error
	}{
		{head + "Anonymous: 12 kB\nLazyFree: 0 kB\nAnonHugePages: 0 kB\n", Memory{20 << 10, 12 << 10, 0}, nil},
		{head + "Anonymous: 12 kB\n", Memory{}, ErrFormat},
		{head + "Anonymous: 12 MB\nAnonHugePages: 0 kB\n", Memory{}, ErrFormat},
	} {
		if got, err := parseMemory([]byte(c.text)); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %+v, %v; want %+v, %v", c.text, got, err, c.want, c.err)
		}
	}
}

// The files of this machine are as the manual pages say.
func TestThisMachine(t *testing.T) {
	cpu, err := Watch(t.Context(), 20*time.Millisecond)
	if err != nil || cpu.All < 0 || cpu.Busy > cpu.All || cpu.CPUs < 1 {
		t.Errorf("CPU %+v, %v", cpu, err)
	}
	if _, err := ReadLoad(); err != nil {
		t.Error(err)
	}
	if _, err := ReadProcess(os.Getpid()); err != nil {
		t.Error(err)
	}
	if m, err := ReadMemory(os.Getpid()); err != nil || m.Anonymous <= 0 || m.Resident < m.Anonymous {
		t.Errorf("memory %+v, %v", m, err)
	}
}
