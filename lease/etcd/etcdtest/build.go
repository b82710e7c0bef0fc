package etcdtest

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"go.etcd.io/etcd/server/v3/embed"
)

// configFile, in the environment, makes a test binary an etcd server.
const configFile = "UVXLAN_TEST_ETCD_CONFIG"

// Build is an etcd to run in a process of its own.
type Build struct {
	Name    string
	command []string
}

// Embedded is the etcd that uvxland embeds. The test binary's TestMain must
// call [Main] first.
func Embedded() Build { return Build{"embedded", nil} }

// Installed is the etcd in PATH, which on Debian is 3.4. The test is skipped
// where there is none, but not in CI.
func Installed(tb testing.TB) Build {
	tb.Helper()
	path, err := exec.LookPath("etcd")
	switch {
	case err == nil:
		return Build{"installed", []string{path, "--config-file"}}
	case os.Getenv("CI") != "":
		tb.Fatal("no etcd in PATH, and CI must not skip its tests (make tools installs it)")
	}
	tb.Skip("no etcd in PATH (make tools installs it)")
	return Build{}
}

// EachBuild runs the test with both, at the same time.
func EachBuild(t *testing.T, test func(t *testing.T, b Build)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, Embedded())
	})
	t.Run("installed", func(t *testing.T) {
		t.Parallel()
		test(t, Installed(t))
	})
}

// Main is the process's life if it is to be an etcd; otherwise it returns.
func Main() {
	path := os.Getenv(configFile)
	if path == "" {
		return
	}
	if err := serve(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(path string) error {
	c, err := embed.ConfigFromFile(path)
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-e.Err():
		return err
	}
}
