package lab

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"uvxlan/tunnel/netnstest"
)

// childVariable makes the test binary the process that TestIntegrationKilledRun
// kills.
const childVariable = "UVXLAN_LAB_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// child makes a lab with two processes in it, one of which has left its parent,
// says so and waits to be killed.
func child() int {
	ctx := context.Background()
	l, err := New(ctx, Options{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	host := l.Host("kb21")
	sleep := host.Command(ctx, "sleep", "1000")
	if err := sleep.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	orphan, err := host.Run(ctx, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("ready %d %s", sleep.Process.Pid, orphan)
	time.Sleep(time.Hour)
	return 1
}

// newLab makes a lab that the test closes.
func newLab(t *testing.T, o Options) *Lab {
	t.Helper()
	netnstest.RequireRoot(t)
	l, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
