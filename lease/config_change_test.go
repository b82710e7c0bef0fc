package lease_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

func TestUnknownFields(t *testing.T) {
	for config, want := range map[string][]string{
		`{"Network":"172.7.0.0/16","SubnetLn":24,"backend":{"type":"vxlan","directroute":true,"MacPrefix":"0E-2A","name":"x"}}`: {
			`unknown field "SubnetLn" has no effect: did you mean "SubnetLen"?`,
			`unknown field "Backend.directroute" has no effect: did you mean "Backend.DirectRouting"?`,
		},
		`{"network":"172.7.0.0/16","VNI":7,"Backend":{"Type":"VxLAN","Learning":true,"GBP":false,"SubnetMin":"172.7.3.0"}}`: {
			`unknown field "VNI" has no effect: did you mean "Backend.VNI"?`,
			`unknown field "Backend.SubnetMin" has no effect: did you mean "SubnetMin"?`,
		},
		`{"Network":"172.7.0.0/16","Description":"ours","Backend":{"Type":"host-gw","Ports":1}}`: {
			`unknown field "Description" has no effect`,
			`unknown field "Backend.Ports" has no effect: did you mean "Backend.Port"?`,
		},
		`{"EnableIPv4":true,"IPV6network":"fd00::/56","Backend":{"Type":"wireguard","PSK":"x"}}`: nil,
		`not JSON`: nil,
	} {
		var got []string
		for _, f := range lease.UnknownFields([]byte(config)) {
			got = append(got, f.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", config, got, want)
		}
	}
}

// A host names a field that has no effect, and starts.
func TestUnknownFieldIsLogged(t *testing.T) {
	s := etcdtest.Start(t)
	log := &lines{}
	put(t, etcdtest.Client(t, s.Endpoint()), etcdtest.Prefix+"/config", `{"Network":"172.7.0.0/16","SubnetLn":26,"Backend":{"Type":"vxlan"}}`)
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Logger: slog.New(slog.NewTextHandler(log, nil))})
	if c, err := m.Config(t.Context()); err != nil || c.SubnetLen != 24 || !strings.Contains(log.String(), "SubnetLn") {
		t.Errorf("%+v, %v, it says\n%s", c, err, log)
	}
}

// A running host learns that the configuration has changed. It keeps its own
// and says what is different, also if the change was made while etcd was away.
func TestConfigurationIsWatched(t *testing.T) {
	dir := t.TempDir()
	s := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	c, log := etcdtest.Client(t, s.Endpoint()), &lines{}
	put(t, c, etcdtest.Prefix+"/config", network)
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Logger: slog.New(slog.NewTextHandler(log, nil))})
	cfg, err := m.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.Acquire(t.Context(), cfg, host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	says := func(words ...string) {
		t.Helper()
		await(t, m, words[0], func(s lease.Status) bool {
			for _, w := range words {
				if !strings.Contains(s.ConfigChange, w) {
					return false
				}
			}
			return true
		})
	}
	same := func() {
		t.Helper()
		await(t, m, "the same", func(s lease.Status) bool { return s.ConfigChange == "" })
	}
	same()
	put(t, c, etcdtest.Prefix+"/config", `{"Network":"172.7.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan","VNI":7}}`)
	says("SubnetLen 26, here 24", "Backend.VNI 7, here 1", "until it restarts")
	put(t, c, etcdtest.Prefix+"/config", `{"network": "172.7.0.0/16", "Backend": {"Type": "VXLAN", "VNI": 1}}`) // the same in other letters
	same()
	put(t, c, etcdtest.Prefix+"/config", `{"Network":"172.7.0.0/16"}`)
	says("Backend missing")
	if _, err := c.Delete(t.Context(), etcdtest.Prefix+"/config"); err != nil {
		t.Fatal(err)
	}
	says("it was removed")
	put(t, c, etcdtest.Prefix+"/config", network)
	same()
	if n := strings.Count(log.String(), "configuration has changed"); n != 3 || !strings.Contains(log.String(), "again the one in force") {
		t.Errorf("it says %d times\n%s", n, log)
	}

	s.Close()
	await(t, m, "away", func(s lease.Status) bool { return !s.Connected })
	unseen := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	put(t, etcdtest.Client(t, unseen.Endpoint()), etcdtest.Prefix+"/config", `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`)
	unseen.Close()
	etcdtest.StartAt(t, dir, s.Endpoint())
	says("Backend.Type host-gw, here vxlan")
	r.cancel()
	if err := r.end(); err != nil && !errors.Is(err, lease.ErrUnavailable) {
		t.Error(err)
	}
}
