package atomicfile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// writeTo, in the environment, makes the test binary a writer that never ends.
const writeTo = "UVXLAN_TEST_WRITE_TO"

func TestMain(m *testing.M) {
	for path := os.Getenv(writeTo); path != ""; {
		if err := Write(path, []byte("text\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// Whenever a writer is killed, the next one leaves nothing but the file.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "file")
	for range 20 {
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), writeTo+"="+path)
		writer.Stderr = os.Stderr
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Millisecond + rand.N(20*time.Millisecond))
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = writer.Wait()
	}
	if err := Write(path, []byte("text\n")); err != nil {
		t.Fatal(err)
	}
	if left := names(t, filepath.Dir(path)); left != "file" {
		t.Errorf("the directory has %s", left)
	}
}

func TestTry(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(Unfinished(path), []byte("from a killed writer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Try(path); err != nil || names(t, dir) != "" {
		t.Errorf("tried: %v; the directory has %s", err, names(t, dir))
	}
	if err := Try(filepath.Join(dir, "missing", "file")); err == nil {
		t.Error("there is no directory")
	}
}

// Writers at the same time don't mix their texts, and a link in the way of the
// unfinished file isn't followed.
func TestSeveralWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 20 {
				if err := Write(path, []byte(strings.Repeat(fmt.Sprint(i), 1<<14))); err != nil {
					t.Error(err)
				}
				if text, err := os.ReadFile(path); err != nil || len(text) != 1<<14 || strings.Count(string(text), string(text[0])) != len(text) {
					t.Errorf("read %d bytes, %v", len(text), err)
				}
			}
		})
	}
	wg.Wait()
	if left := names(t, dir); left != "file" {
		t.Errorf("the directory has %s", left)
	}
	if err := os.Symlink("elsewhere", Unfinished(path)); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, nil); err == nil {
		t.Error("a link was followed")
	}
}
