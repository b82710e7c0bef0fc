package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the program that reloads. This variable tells it what
// to do then.
const variableOfTest = "UVXLAN_RELOAD_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(variableOfTest) == "" {
		os.Exit(m.Run())
	}
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// play works by writing who it is to a pipe that it inherits, where all write.
func play() error {
	r, err := Receive()
	if err != nil {
		return err
	}
	switch {
	case r == nil:
		return playFirst()
	case r.Main != nil:
		return playStandby(r)
	}
	if os.Getenv(variableOfTest) == "again" {
		return playAgain(r.Standby)
	}
	return playSuccessor(r)
}

const pipe = 3

func say(format string, args ...any) {
	_, _ = unix.Write(pipe, fmt.Appendf(nil, format+"\n", args...))
}

func playFirst() error {
	switch os.Getenv(variableOfTest) {
	case "again":
		return playAgain(nil)
	case "asks", "asks an old one":
		return playAsking()
	case "deaf":
		t := NotifyTermination()
		say("deaf")
		<-t.Done()
		say("deaf")
		select {}
	}
	termination := NotifyTermination()
	say("first %d", os.Getpid())
	program, err := Program()
	if err != nil {
		return err
	}
	s, err := Start(context.Background(), program, []byte("for the standby"), []int{pipe})
	if err != nil {
		return err
	}
	if err := s.Go(); err != nil {
		return err
	}
	unix.CloseOnExec(pipe)
	if s := sentByItself[os.Getenv(variableOfTest)]; s != 0 {
		if err := unix.Kill(os.Getpid(), s); err != nil {
			return err
		}
	}
	err = Exec(termination, program, []byte("for the successor"), []int{pipe}, s)
	say("first goes on: %v, %v", err, s.Stop())
	s.Reap()
	return nil
}

// playAsking asks a standby what it takes over.
func playAsking() error {
	program, err := Program()
	if err != nil {
		return err
	}
	s, err := Start(context.Background(), program, nil, []int{pipe})
	if err != nil {
		return err
	}
	say("takes a fast path over: %t", s.TakesFastPath())
	defer s.Reap()
	return s.Stop()
}

// sentByItself are the signals that the program sends itself just before the
// exec.
var sentByItself = map[string]unix.Signal{"stopped": unix.SIGTERM, "hung up": unix.SIGHUP}

// playAgain hands over, and so does every successor, until a signal ends one of
// them.
func playAgain(before *Standby) error {
	termination := NotifyTermination()
	say("main")
	if before != nil {
		if err := before.Stop(); err != nil {
			return err
		}
		before.Reap()
	}
	program, err := Program()
	if err != nil {
		return err
	}
	s, err := Start(termination, program, nil, []int{pipe})
	if errors.Is(err, context.Canceled) {
		say("cleans up")
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.Go(); err != nil {
		return err
	}
	err = Exec(termination, program, nil, []int{pipe}, s)
	if !errors.Is(err, context.Canceled) {
		return err
	}
	say("cleans up")
	defer s.Reap()
	return s.Stop()
}

func playStandby(r *Received) error {
	switch os.Getenv(variableOfTest) {
	case "asks an old one": // which knows nothing of fast paths
		if err := r.Main.link.send(takesTunnel); err != nil {
			return err
		}
		r.Main.AwaitStop()
		return r.Main.Stopped()
	case "asks":
		if err := ignoreEnd(r.Main.Ready()); err != nil {
			return err
		}
		return r.Main.Stopped()
	case "again":
		if err := r.Main.Ready(); err != nil {
			return err
		}
		if died := r.Main.AwaitStop(); died {
			say("cleans up")
		}
		return r.Main.Stopped()
	}

	say("standby of %d reads %q", os.Getppid(), r.State)
	if err := r.Main.Ready(); err != nil {
		return err
	}
	say("standby works")
	r.Main.AwaitStop()
	say("standby stops")
	return r.Main.Stopped()
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func playSuccessor(r *Received) error {
	if os.Getenv(variableOfTest) == "dies" {
		say("successor dies")
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	err := r.Standby.Stop()
	say("successor %d reads %q, %v", os.Getpid(), r.State, err)
	r.Standby.Reap()
	if _, err := unix.Wait4(-1, nil, 0, nil); !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("a child is left: %w", err)
	}
	return nil
}

// begin starts the program as a child of the test, with a pipe for all that it and
// its successors say.
func begin(t *testing.T, how string) (*os.File, *exec.Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = append(os.Environ(), variableOfTest+"="+how, "GORACE=atexit_sleep_ms=0")
	c.ExtraFiles = []*os.File{w}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return r, c
}

// run waits until neither the program nor its successors have the pipe any
// longer. It returns all that they said, and the program's process id.
func run(t *testing.T, how string) (said []string, pid int) {
	t.Helper()
	r, c := begin(t, how)
	text, err := io.ReadAll(r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("somebody doesn't end: %v", errors.Join(err, c.Process.Kill()))
	}
	if err := c.Wait(); err != nil && how != "dies" {
		t.Error(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n"), c.Process.Pid
}

func expect(t *testing.T, said []string, want ...string) {
	t.Helper()
	if got, want := strings.Join(said, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("it said\n%s\nnot\n%s", got, want)
	}
}

func TestReload(t *testing.T) {
	said, pid := run(t, "reloads")
	expect(t, said, fmt.Sprintf("first %d", pid), fmt.Sprintf("standby of %d reads %q", pid, "for the standby"),
		"standby works", "standby stops", fmt.Sprintf("successor %d reads %q, <nil>", pid, "for the successor"))
}

// A program says what it takes over; one from before fast paths takes none.
func TestTakesFastPath(t *testing.T) {
	for how, takes := range map[string]bool{"asks": true, "asks an old one": false} {
		said, _ := run(t, how)
		expect(t, said, fmt.Sprintf("takes a fast path over: %t", takes))
	}
}

// A standby whose main process dies ends as well.
func TestSuccessorDies(t *testing.T) {
	said, pid := run(t, "dies")
	expect(t, said, fmt.Sprintf("first %d", pid), fmt.Sprintf("standby of %d reads %q", pid, "for the standby"),
		"standby works", "successor dies", "standby stops")
}

// A signal that comes just before the exec is heeded.
func TestStopped(t *testing.T) {
	for i := range 50 {
		said, pid := run(t, []string{"stopped", "hung up"}[i%2])
		expect(t, said, fmt.Sprintf("first %d", pid), fmt.Sprintf("standby of %d reads %q", pid, "for the standby"),
			"standby works", "standby stops", "first goes on: context canceled, <nil>")
	}
}

// A signal is heeded at whatever moment of a handover it comes. Either the
// program that it meets cleans up, or the signal has ended that program by
// itself and the standby cleans up.
func TestSignalAtAnyMoment(t *testing.T) {
	byItself := 0
	signals := []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP}
	if signal.Ignored(unix.SIGHUP) { // by nohup
		signals = signals[:2]
	}
	for i := range 60 {
		r, c := begin(t, "again")
		lines := bufio.NewScanner(r)
		for range 1 + i%3 {
			lines.Scan()
		}
		time.Sleep(time.Duration(i) * 300 * time.Microsecond) // the moment is the point
		s := signals[i%len(signals)]
		if err := c.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		cleaned := 0
		var said []string
		for lines.Scan() {
			said = append(said, lines.Text())
			if lines.Text() == "cleans up" {
				cleaned++
			}
		}
		err := c.Wait()
		if err != nil && err.Error() == "signal: "+s.String() {
			byItself, err = byItself+1, nil
		}
		if err = errors.Join(lines.Err(), err); err != nil || cleaned != 1 {
			t.Errorf("after %d: it was cleaned up %d times, %v, %v, of %d by itself: %q", i, cleaned, err, c.ProcessState, byItself, said)
		}
	}
	t.Logf("the signal ended %d of 60 by itself", byItself)
}

// The second signal ends a process, also one whose first one was before.
func TestSecondSignal(t *testing.T) {
	r, c := begin(t, "deaf")
	lines := bufio.NewScanner(r)
	for lines.Scan() && lines.Text() == "deaf" {
		if err := c.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("it said %q and ended: %v", lines.Text(), err)
	}
}

// A program that can't stand in is refused in its own words. Nothing of it is
// left open.
func TestRefused(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	before := openDescriptors(t)
	for text, want := range map[string]string{
		"#!/bin/sh\necho no; echo never >&2; exit 9\n": "it ended; exit status 9; it said: never",
		"#!/bin/sh\nkill -TERM $$\n":                   "it ended; signal: terminated",
		"#!/bin/sh\n":                                  "it ended",
		"no program at all":                            "exec format error",
	} {
		if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Start(t.Context(), program, nil, nil)
		if !errors.Is(err, ErrRefused) || !strings.HasSuffix(err.Error(), program+": "+want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\nsleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, program, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that is never ready: %v", err)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		t.Errorf("a child is left: %v", err)
	}
}

// A descriptor that somebody else opens while a program is tried stays open.
func TestStartClosesOnlyItsOwn(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nsleep 0.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tried := make(chan error, 1)
	go func() {
		_, err := Start(t.Context(), program, nil, nil)
		tried <- err
	}()
	var opened []int
	for err := error(nil); !errors.Is(err, ErrRefused); {
		fd, openErr := unix.Open("/dev/null", unix.O_CLOEXEC, 0)
		if openErr != nil {
			t.Fatal(openErr)
		}
		opened = append(opened, fd)
		select {
		case err = <-tried:
		case <-time.After(time.Millisecond):
		}
	}
	for _, fd := range opened {
		if err := unix.Close(fd); err != nil {
			t.Errorf("descriptor %d: %v", fd, err)
		}
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// What somebody else has put into the environment is refused.
func TestReceive(t *testing.T) {
	if r, err := Receive(); r != nil || err != nil {
		t.Errorf("received %+v, %v", r, err)
	}
	for _, value := range []string{"guest,1,2", "stand-in", "stand-in,x,4", "successor,1048576,1048577,1", "successor,1"} {
		t.Setenv(variable, value)
		if r, err := Receive(); r != nil || err == nil || !strings.Contains(err.Error(), value) {
			t.Errorf("%s: %+v, %v", value, r, err)
		}
		if os.Getenv(variable) != "" {
			t.Errorf("%s is left to others", value)
		}
	}
}
