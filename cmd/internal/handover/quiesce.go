package handover

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quiesceTime bounds the wait for a thread that gets no CPU or sleeps deeply in
// the kernel.
const (
	quiesceTime     = time.Second
	quiesceInterval = 100 * time.Microsecond
)

// quiesce returns when every one of the given signals that was sent before is
// handled. None of them waits for a thread to take it, and no thread is still
// in a handler of one. The kernel picks any thread for a signal, and exec ends
// threads in the middle of a handler.
func quiesce(signals []os.Signal) {
	var all signalSet
	for _, s := range signals {
		all |= setOf(s.(unix.Signal))
	}
	late := time.Now().Add(quiesceTime)
	for time.Now().Before(late) {
		if s, err := signalsOf("/proc/self/status"); err != nil || s.pendingAll&all == 0 {
			break
		}
		time.Sleep(quiesceInterval)
	}
	// Go's handlers block all signals. So a thread that takes this one has left
	// every handler that began before. Go uses this signal to interrupt its
	// threads, and doesn't mind one more.
	const visit = unix.SIGURG
	for _, tid := range threads() {
		_ = unix.Tgkill(os.Getpid(), tid, visit) // it may have ended
	}
	for _, tid := range threads() {
		for time.Now().Before(late) {
			s, err := signalsOf(fmt.Sprintf("/proc/self/task/%d/status", tid))
			if err != nil || s.pending&(all|setOf(visit)) == 0 && s.blocked&all == 0 {
				break
			}
			time.Sleep(quiesceInterval)
		}
	}
}

// threads returns the ids of this process's threads, none where /proc doesn't
// tell.
func threads() (tids []int) {
	entries, _ := os.ReadDir("/proc/self/task")
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// signalSet has bit n-1 for signal n.
type signalSet uint64

func setOf(s unix.Signal) signalSet { return 1 << (s - 1) }

// threadSignals is what the kernel says of a thread (proc_pid_status(5)).
type threadSignals struct {
	pending, pendingAll, blocked signalSet // of the thread, of the process; by the thread
}

func signalsOf(path string) (s threadSignals, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		to := map[string]*signalSet{"SigPnd": &s.pending, "ShdPnd": &s.pendingAll, "SigBlk": &s.blocked}[name]
		if to == nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return s, err
		}
		*to = signalSet(n)
	}
	return s, nil
}
