package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/lease/etcd/etcdtest"
)

const (
	goodConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	badConfig  = `{"Network":"172.7.0.0/16","SubnetLen":12,"Backend":{"Type":"carrier-pigeon"}}`
)

func TestConfig(t *testing.T) {
	endpoint := etcdtest.Start(t).Endpoint()
	t.Setenv("FLANNELD_ETCD_ENDPOINTS", endpoint)
	t.Setenv("FLANNELD_ETCD_PREFIX", "/other")
	registry := etcdtest.Client(t, endpoint)
	stored := func() string {
		t.Helper()
		got, err := registry.Get(t.Context(), "/other/config")
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("etcd has %v, %v", got, err)
		}
		return string(got.Kvs[0].Value)
	}
	file := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(file, []byte(goodConfig+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"set", goodConfig}, {"get"}, {"check"}, {"check", file}, {"set", file}, {"--etcd-prefix=/other", "set", goodConfig}} {
		if err := run(t.Context(), append([]string{"config"}, args...)); err != nil {
			t.Errorf("config %q: %v", args, err)
		}
		if got := strings.TrimSpace(stored()); got != goodConfig {
			t.Errorf("after config %q etcd has %s", args, got)
		}
	}
	for _, args := range [][]string{{"set", badConfig}, {"check", badConfig}} {
		err := run(t.Context(), append([]string{"config"}, args...))
		if err == nil || !strings.Contains(err.Error(), "carrier-pigeon") || !strings.Contains(err.Error(), "SubnetLen") {
			t.Errorf("config %q: %v", args, err)
		}
		if got := strings.TrimSpace(stored()); got != goodConfig {
			t.Errorf("after config %q etcd has %s", args, got)
		}
	}
	if err := run(t.Context(), []string{"config", "check", filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a file that isn't there is valid")
	}
	if err := run(t.Context(), []string{"config", "get", "-etcd-prefix", "/none"}); err == nil {
		t.Error("there is a configuration that nobody wrote")
	}
}
