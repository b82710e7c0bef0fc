package flagenv

import (
	"flag"
	"io"
	"strings"
	"testing"
)

func TestFill(t *testing.T) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	given := fs.String("etcd-prefix", "/default", "")
	filled := fs.String("public-ip", "", "")
	var list, none List
	fs.Var(&list, "iface", "")
	fs.Var(&none, "iface-regex", "")
	number, empty := fs.Int("v", 0, ""), fs.Bool("ip-masq", true, "")
	if err := fs.Parse([]string{"--etcd-prefix=/given", "-iface-regex="}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FLANNELD_ETCD_PREFIX", "/env")
	t.Setenv("FLANNELD_PUBLIC_IP", "192.0.2.1")
	t.Setenv("FLANNELD_IFACE", "eth7")
	t.Setenv("FLANNELD_IP_MASQ", "")
	t.Setenv("FLANNELD_V", "much")
	err := Fill(fs, "FLANNELD_")
	if *given != "/given" || *filled != "192.0.2.1" || list.String() != "eth7" || len(none) > 0 || *number != 0 || !*empty {
		t.Errorf("got %q, %q, %q, %q, %d, %t", *given, *filled, list, none, *number, *empty)
	}
	if err == nil || !strings.Contains(err.Error(), `FLANNELD_V="much": must be a whole number`) || strings.Contains(err.Error(), "IP_MASQ") {
		t.Errorf("the error names another variable: %v", err)
	}
}
