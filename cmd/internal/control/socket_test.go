package control_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
)

func serve(t *testing.T, path string, s control.Source) *control.Server {
	t.Helper()
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	server := control.Serve(l, control.Handler(s, nil), slog.New(slog.DiscardHandler))
	t.Cleanup(func() { server.Close() })
	return server
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "uvxlan.sock")
	client := control.NewClient(path)
	if _, err := client.Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
	s := running()
	server := serve(t, path, s)
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	status, err := client.Status(t.Context())
	if err != nil || !reflect.DeepEqual(status, s.Status()) {
		t.Errorf("status %+v, %v", status, err)
	}
	peers, err := client.Peers(t.Context())
	if err != nil || !reflect.DeepEqual(peers, s.Peers()) {
		t.Errorf("peers %+v, %v", peers, err)
	}
	if _, err := control.Listen(t.Context(), path); !errors.Is(err, control.ErrInUse) {
		t.Errorf("a second daemon: %v", err)
	}
	if _, err := client.Status(t.Context()); err != nil {
		t.Errorf("after a second daemon: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left after the end: %v", err)
	}
}

func TestSocketWithoutPeers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uvxlan.sock")
	serve(t, path, &state{})
	if peers, err := control.NewClient(path).Peers(t.Context()); err != nil || peers == nil || len(peers) > 0 {
		t.Errorf("peers %v, %v", peers, err)
	}
}

// killed leaves a socket that nobody answers on.
func killed(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestSocketReplacesAStaleOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uvxlan.sock")
	killed(t, path)
	if _, err := control.NewClient(path).Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("a killed daemon: %v", err)
	}
	serve(t, path, running())
	if _, err := control.NewClient(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketLeavesWhatIsNotIts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uvxlan.sock")
	if err := os.WriteFile(path, []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "notes" {
		t.Errorf("the file is %q, %v", text, err)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	server := serve(t, path, running())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	killed(t, path) // somebody else's by now
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket: %v", err)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if _, err := control.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("with %d bytes: %v", len(path), err)
	}
}

// Who asks while one server hands over to the next has an answer, of the one or the
// other.
func TestHandOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uvxlan.sock")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var answers [2]atomic.Int64
	handler := func(i int) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { answers[i].Add(1) })
	}
	log := slog.New(slog.DiscardHandler)
	s := control.Serve(l, handler(0), log)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if err := askOnce(path); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 50 {
		for before := answers[i%2].Load(); answers[i%2].Load() == before; {
			runtime.Gosched()
		}
		fd, err := s.HandOver()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if l, err = control.Adopt(fd, path); err != nil {
			t.Fatal(err)
		}
		s = control.Serve(l, handler((i+1)%2), log)
	}
	cancel()
	asking.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// askOnce asks on a connection of its own.
func askOnce(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// Whoever may read the socket's folder can lock it, which must not keep a daemon
// from its start; a lock that is really in the way is not waited for without end.
func TestListenLocked(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "uvxlan.sock")
	hold := func(name string, flags int) *os.File {
		f, err := os.OpenFile(name, flags, 0o600)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	hold(dir, os.O_RDONLY)
	s, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
	hold(path+".lock", os.O_RDWR|os.O_CREATE)
	if _, err := control.Listen(t.Context(), path); !errors.Is(err, control.ErrSocket) || !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("with the lock taken: %v", err)
	}
}
