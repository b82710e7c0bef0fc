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
	var list List
	fs.Var(&list, "iface", "")
	number := fs.Int("v", 0, "")
	if err := fs.Parse([]string{"--etcd-prefix=/given"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FLANNELD_ETCD_PREFIX", "/env")
	t.Setenv("FLANNELD_PUBLIC_IP", "192.0.2.1")
	t.Setenv("FLANNELD_IFACE", "eth7")
	t.Setenv("FLANNELD_V", "much")
	err := Fill(fs, "FLANNELD_")
	if *given != "/given" || *filled != "192.0.2.1" || list.String() != "eth7" || *number != 0 {
		t.Errorf("got %q, %q, %q, %d", *given, *filled, list, *number)
	}
	if err == nil || !strings.Contains(err.Error(), `FLANNELD_V="much"`) {
		t.Errorf("the error doesn't name the variable: %v", err)
	}
}
