package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

const (
	goodConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`
	fromLog    = `{\"Network\":\"172.7.0.0/16\",\"Backend\":{\"Type\":\"VxLAN\",\"Directrouting\":true}}`
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
	for _, args := range [][]string{{"set", goodConfig}, {"get"}, {"check"}, {"check", file}, {"set", file}, {"--etcd-prefix=/other", "set", goodConfig}, {"set", fromLog}} {
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

// What was understood is printed, with the defaults.
func TestConfigCheckPrints(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	const config = `{"Network":"172.7.0.0/16","SubnetLn":26,"Backend":{"Type":"VxLAN","Directrouting":true}}`
	if err := p.check(config); err != nil {
		t.Fatal(err)
	}
	want := `the configuration is valid:
network         172.7.0.0/16
subnets         /24, from 172.7.1.0 to 172.7.255.0
backend         vxlan
vni             1
port            4789
underlay mtu    the interface's
direct routing  to peers on one network, by socket
firewall        iptables
`
	if out.String() != want {
		t.Errorf("it printed\n%swant\n%s", &out, want)
	}
	out.Reset()
	p.json = true
	if err := p.check(config); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Valid   bool
		Unknown []struct{ Field, Suggestion string }
		Config  struct{ SubnetLen int }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || !got.Valid || len(got.Unknown) != 1 || got.Unknown[0].Suggestion != "SubnetLen" || got.Config.SubnetLen != 24 {
		t.Errorf("%v, %+v in\n%s", err, got, &out)
	}
}

// The first command after etcd's start is often this one.
func TestConfigSetWaitsForEtcd(t *testing.T) {
	s := etcdtest.Start(t)
	s.Close()
	tooEarly, err := net.Listen("tcp", strings.TrimPrefix(s.Endpoint(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p := printer{out: &out}
	done := make(chan error, 1)
	go func() { done <- p.set(t.Context(), etcd.Options{Endpoints: []string{s.Endpoint()}}, goodConfig) }()
	conn, err := tooEarly.Accept() // it has asked before etcd was there
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	tooEarly.Close()
	etcdtest.StartAt(t, filepath.Join(t.TempDir(), "etcd"), s.Endpoint())
	if err := <-done; err != nil || !strings.Contains(out.String(), "start with it now") {
		t.Errorf("%v, it printed %s", err, &out)
	}
	out.Reset()
	for config, words := range map[string]string{goodConfig: "the same as", strings.Replace(goodConfig, "true", "false", 1): "until it restarts"} {
		out.Reset()
		if err := p.set(t.Context(), etcd.Options{Endpoints: []string{s.Endpoint()}}, goodConfig); err != nil {
			t.Fatal(err)
		}
		if err := p.set(t.Context(), etcd.Options{Endpoints: []string{s.Endpoint()}}, config); err != nil || !strings.Contains(out.String(), words) {
			t.Errorf("%v, it printed %s, want %q", err, &out, words)
		}
	}
}
