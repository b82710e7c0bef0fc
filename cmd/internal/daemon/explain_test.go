package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/extiface"
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

// The embedded etcd listens where it is told, and the other hosts are told an address
// that they reach.
func TestEmbeddedEtcdListens(t *testing.T) {
	ext := extiface.Interface{Address: netip.MustParseAddr("192.168.14.21")}
	for at, want := range map[string][2]string{
		"":                                 {"http://127.0.0.1:2379,http://192.168.14.21:2379", "http://192.168.14.21:2379"},
		"127.0.0.1:2379":                   {"http://127.0.0.1:2379", "http://127.0.0.1:2379"},
		"0.0.0.0:2400":                     {"http://0.0.0.0:2400", "http://192.168.14.21:2400"},
		"127.0.0.1:2379 192.168.14.21:500": {"http://127.0.0.1:2379,http://192.168.14.21:500", "http://192.168.14.21:500"},
	} {
		var o Options
		for a := range strings.FieldsSeq(at) {
			o.EmbeddedEtcdListen = append(o.EmbeddedEtcdListen, netip.MustParseAddrPort(a))
		}
		if listen, advertise := etcdURLs(&o, ext); listen != want[0] || advertise != want[1] {
			t.Errorf("%s: listens on %s, tells %s, want %s", at, listen, advertise, want)
		}
	}
}

func TestEmbeddedEtcdRefusesTooFewFiles(t *testing.T) {
	if err := checkEtcdFiles(150); !errors.Is(err, unix.EMFILE) {
		t.Error(err)
	}
	if err := checkEtcdFiles(151); err != nil {
		t.Error(err)
	}
}
