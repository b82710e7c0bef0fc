package logqueue

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func gap(lost uint64) []byte { return fmt.Appendf(nil, "%d lost\n", lost) }

// stuck is a queue whose writer waits for the reader of a pipe, and what that is
// to read of it first.
func stuck(t *testing.T) (q *Queue, r *os.File, first string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	q, first = New(w, gap), strings.Repeat("p", 2*os.Getpagesize())
	if _, err := q.Write([]byte(first)); err != nil {
		t.Fatal(err)
	}
	for taken := false; !taken; time.Sleep(time.Millisecond) {
		q.mu.Lock()
		taken = len(q.lines) == 0
		q.mu.Unlock()
	}
	return q, r, first
}

const patience = 20 * time.Second

// A reader that stands still stops nobody, and is told what it missed, where it is
// missing, once it reads again.
func TestReaderStandsStill(t *testing.T) {
	q, r, first := stuck(t)
	line := strings.Repeat("x", 99) + "\n"
	const fit, beyond = Capacity / 100, 1000
	for range fit + beyond {
		if n, err := q.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if lost := q.Lost(); lost != beyond {
		t.Errorf("%d lines are lost, not %d", lost, beyond)
	}
	if q.Flush(time.Millisecond) {
		t.Error("everything is written, with nobody to read it")
	}
	expect(t, r, first+strings.Repeat(line, fit)+string(gap(beyond)))
	if _, err := q.Write([]byte("after\n")); err != nil || !q.Flush(patience) {
		t.Error("what came after isn't written", err)
	}
	expect(t, r, "after\n")
	if q.Lost() != beyond {
		t.Errorf("%d lines were lost, and %d in the end", beyond, q.Lost())
	}
}

// expect reads as many bytes as there are in want.
func expect(t *testing.T, r *os.File, want string) {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Errorf("%d of %d bytes were read, %v, in the end %q", n, len(want), err, got[max(n-200, 0):n])
	}
}

// The place of what is missing is before what comes after it.
func TestGapInPlace(t *testing.T) {
	q, r, first := stuck(t)
	whole := strings.Repeat("a", Capacity-100) + "\n"
	for _, line := range []string{whole, whole, whole, "c\n", "d\n"} {
		if _, err := q.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, r, first+whole+string(gap(2))+"c\nd\n")
}

func TestFlush(t *testing.T) {
	var written bytes.Buffer
	q := New(&written, gap)
	if !q.Flush(0) && !q.Flush(patience) {
		t.Error("there is something to write before there is")
	}
	for range 1000 {
		if _, err := q.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	if !q.Flush(patience) || written.Len() != 5000 || q.Lost() != 0 {
		t.Errorf("%d bytes are written, %d lines lost", written.Len(), q.Lost())
	}
}
