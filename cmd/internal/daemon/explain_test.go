package daemon

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplainNamesTheLimitOfOpenFiles(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	err := explain(fmt.Errorf("open socket: %w", unix.EMFILE))
	for _, want := range []string{
		"open socket: too many open files: ", fmt.Sprintf("RLIMIT_NOFILE is %d,", limit.Max), "a worker needs 20, 40 with IPv6", "LimitNOFILE=", "-workers",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}
