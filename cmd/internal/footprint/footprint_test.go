package footprint

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

func TestUnchanged(t *testing.T) {
	const smaps = `00400000-00fec000 r-xp 00000000 fd:00 1234   /opt/my programs/uvxland
Rss:               11000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00fec000-00ff0000 r-xp 00bec000 fd:00 1234   /opt/my programs/uvxland
Anonymous:             4 kB
00ff0000-01e24000 r--p 00bf0000 fd:00 1234   /opt/my programs/uvxland
Anonymous:             0 kB
01e24000-01eb9000 rw-p 01a24000 fd:00 1234   /opt/my programs/uvxland
Anonymous:             0 kB
01eb9000-03f01000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fd:00 99   /opt/my programs/uvxland.conf
Anonymous:             0 kB
`
	got, err := unchanged(strings.NewReader(smaps), "/opt/my programs/uvxland")
	want := []mapping{{0x400000, 0xfec000}, {0xff0000, 0x1e24000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v, want %x", got, err, want)
	}
}

// mappedOf is how much of the executable's unchanged mappings is mapped, and how
// large they are, in KiB.
func mappedOf(t *testing.T, own []mapping) (rss, size int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	within := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if strings.Contains(fields[0], "-") {
			m, err := parseRange(fields[0])
			within = err == nil && slices.Contains(own, m)
		}
		if !within || fields[0] != "Rss:" && fields[0] != "Size:" {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		if fields[0] == "Rss:" {
			rss += n
		} else {
			size += n
		}
	}
	return rss, size
}

func TestTrim(t *testing.T) {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own, err := unchanged(f, name)
	if err != nil || len(own) == 0 {
		t.Fatalf("the executable's mappings: %v, %v", own, err)
	}
	sum := byte(0)
	for _, m := range own {
		for at := m.start; at < m.end; at += uintptr(os.Getpagesize()) {
			sum += *(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at))) // no object of Go's
		}
	}
	rss, size := mappedOf(t, own)
	if rss < size/2 {
		t.Fatalf("%d of %d KiB are mapped after all was read (%d)", rss, size, sum)
	}
	if err := Trim(); err != nil {
		t.Fatal(err)
	}
	if after, _ := mappedOf(t, own); after > rss*3/4 {
		t.Errorf("%d KiB of the executable are mapped, %d before", after, rss)
	} else {
		t.Logf("%d KiB of the executable are mapped, %d before", after, rss)
	}
}

// What has grown is given back.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Keep(ctx) }()
		collections := func() int {
			synctest.Wait()
			var s debug.GCStats
			debug.ReadGCStats(&s)
			return int(s.NumGC)
		}
		defer debug.SetGCPercent(debug.SetGCPercent(-1)) // no collection but ours
		collections()
		for _, wait := range []time.Duration{firstInterval, interval} {
			garbage := bytes.Repeat([]byte{1}, 8<<20)
			before := collections()
			time.Sleep(wait)
			after := collections()
			runtime.KeepAlive(garbage)
			if after == before {
				t.Errorf("%s after 8 MiB more there is no collection", wait)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
