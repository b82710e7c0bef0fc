package cniconf

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

var config = Config{
	Network: netip.MustParsePrefix("10.244.0.0/16"), Subnet: netip.MustParsePrefix("10.244.3.0/24"),
	NetworkV6: netip.MustParsePrefix("fd00:244::/48"), SubnetV6: netip.MustParsePrefix("fd00:244:0:3::/64"),
	MTU: 1450,
}

// What is written is what CNI's own library reads, and what the bridge plugin is to be
// told.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net.d/10-uvxlan.conflist")
	if ok, err := config.Written(path); ok || err != nil {
		t.Errorf("before it is written: %t, %v", ok, err)
	}
	if err := config.Write(path); err != nil {
		t.Fatal(err)
	}
	if ok, err := config.Written(path); !ok || err != nil {
		t.Errorf("once it is written: %t, %v", ok, err)
	}
	other := config
	other.MTU = 1400
	if ok, err := other.Written(path); ok || err != nil {
		t.Errorf("another MTU: %t, %v", ok, err)
	}
	list, err := libcni.ConfListFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if list.Name != "cbr0" || list.CNIVersion != "0.3.1" || len(list.Plugins) != 2 {
		t.Fatalf("the list is %+v", list)
	}
	if p := list.Plugins[1].Network; p.Type != "portmap" || !p.Capabilities["portMappings"] {
		t.Errorf("the second plugin is %+v", p)
	}
	got, err := libcni.InjectConf(list.Plugins[0], map[string]any{"name": list.Name})
	if err != nil {
		t.Fatal(err)
	}
	var gotObject, wantObject any
	decode(t, got.Bytes, &gotObject)
	decode(t, []byte(`{
		"name": "cbr0", "type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "isDefaultGateway": true,
		"hairpinMode": true, "forceAddress": true, "ipMasq": false, "ipam": {"type": "host-local",
			"ranges": [[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:244:0:3::/64"}]],
			"routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:244::/48"}]}
	}`), &wantObject)
	if !reflect.DeepEqual(gotObject, wantObject) {
		t.Errorf("the bridge plugin is told %s", got.Bytes)
	}
}

// Flannel's configuration is found in each form that runtimes read, and only that.
func TestFlannel(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		found bool
	}{
		"10-flannel.conflist":     {`{"plugins": [{"type": "portmap"}, {"type": "flannel"}]}`, true},
		"10-flannel.conf":         {`{"type": "flannel"}`, true},
		"10-bridge.conflist":      {`{"plugins": [{"type": "bridge"}]}`, false},
		"10-flannel.conflist.bak": {`{"plugins": [{"type": "flannel"}]}`, false},
		"10-half.conflist":        {`{"plugins": [{"type": "flannel"`, false},
		"20-uvxlan.conflist":      {`{"plugins": [{"type": "flannel"}]}`, false}, // our own
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Flannel(filepath.Join(dir, "20-uvxlan.conflist"))
		if err != nil || (got == filepath.Join(dir, name)) != c.found {
			t.Errorf("%s with %s: %q, %v", name, c.text, got, err)
		}
	}
	if got, err := Flannel(filepath.Join(t.TempDir(), "none/20-uvxlan.conflist")); got != "" || err != nil {
		t.Errorf("no folder: %q, %v", got, err)
	}
}

func decode(t *testing.T, text []byte, into *any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}
