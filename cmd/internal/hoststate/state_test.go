package hoststate

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if s, err := Load(dir); err != nil || !reflect.DeepEqual(s, State{}) {
		t.Fatalf("no manifest: %+v, %v", s, err)
	}
	want := State{SubnetFile: "/run/flannel/subnet.env", Device: "flannel.1", Sysctls: []Sysctl{{"ipv4/conf/eth0/rp_filter", "1", "2"}}, Blackhole: netip.MustParsePrefix("172.7.21.0/24"), BlackholeV6: netip.MustParsePrefix("fd00:7::/64")}
	for range 2 {
		if err := want.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(dir)
	if err != nil || got.SubnetFile != want.SubnetFile || got.Device != want.Device || !slices.Equal(got.Sysctls, want.Sysctls) || got.Blackhole != want.Blackhole || got.BlackholeV6 != want.BlackholeV6 || len(got.Unknown()) > 0 {
		t.Fatalf("read back %+v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the manifest: %v, %v", entries, err)
	}
	text, err := os.ReadFile(Path(dir))
	for _, field := range []string{`"subnetFile": "/run`, `"device": "flannel.1"`, `"path": "ipv4/`, `"before": "1"`, `"set": "2"`, `"blackhole": "172.7.21.0/24"`, `"blackholeV6": "fd00:7::/64"`} {
		if err != nil || !strings.Contains(string(text), field) {
			t.Errorf("the manifest doesn't have %s: %s, %v", field, text, err)
		}
	}
}

func TestUnknownFieldsStay(t *testing.T) {
	dir := t.TempDir()
	text := `{"device": "flannel.1", "firewall": {"chains": ["A", "B"]}, "version": 7}`
	if err := os.WriteFile(Path(dir), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Update(dir, func(s *State) { s.Device = "flannel.2" }); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil || s.Device != "flannel.2" || !slices.Equal(s.Unknown(), []string{"firewall", "version"}) {
		t.Fatalf("the manifest became %+v, %v", s, err)
	}
	if got := string(s.unknown["firewall"]); strings.Join(strings.Fields(got), "") != `{"chains":["A","B"]}` {
		t.Errorf("the unknown field became %s", got)
	}
	if err := s.OnlyUnknown().Save(dir); err != nil {
		t.Fatal(err)
	}
	if s, err = Load(dir); err != nil || s.Device != "" || len(s.Unknown()) != 2 {
		t.Errorf("what is left is %+v, %v", s, err)
	}
}

func TestDamagedManifest(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(Path(dir), []byte(`{"device": `), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), Path(dir)) {
		t.Errorf("a damaged manifest: %v", err)
	}
	if err := (State{}).Save("/proc/nothing"); !errors.Is(err, ErrDir) {
		t.Errorf("Save where nothing can be written: %v", err)
	}
}

func TestRecord(t *testing.T) {
	const path = "ipv4/conf/eth0/rp_filter"
	var s State
	for _, c := range []struct {
		name                            string
		found, set, wantBefore, wantSet string
	}{
		{"first", "1", "2", "1", "2"},
		{"again after a crash", "2", "2", "1", "2"},
		{"another value", "2", "0", "1", "0"},
		{"somebody changed it meanwhile", "1", "2", "1", "2"},
	} {
		s.Record(Sysctl{path, c.found, c.set})
		if want := []Sysctl{{path, c.wantBefore, c.wantSet}}; !slices.Equal(s.Sysctls, want) {
			t.Errorf("%s: %v, want %v", c.name, s.Sysctls, want)
		}
	}
}

// What can't be restored stays in the manifest. What went with its interface
// doesn't.
func TestRestoreSysctls(t *testing.T) {
	dir := t.TempDir()
	if restored, err := RestoreSysctls(dir); err != nil || len(restored) > 0 || len(entries(t, dir)) > 0 {
		t.Errorf("without a manifest: %v, %v", restored, err)
	}
	impossible := Sysctl{"../kernel/hostname", "0", "1"}
	state := State{Device: "flannel.1", Sysctls: []Sysctl{{"ipv4/conf/no-such-device/rp_filter", "1", "2"}, impossible}}
	if err := state.Save(dir); err != nil {
		t.Fatal(err)
	}
	if restored, err := RestoreSysctls(dir); err == nil || len(restored) > 0 {
		t.Errorf("restored %v, %v", restored, err)
	}
	s, err := Load(dir)
	if err != nil || s.Device != "flannel.1" || !slices.Equal(s.Sysctls, []Sysctl{impossible}) {
		t.Errorf("the manifest became %+v, %v", s, err)
	}
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSysctlPaths(t *testing.T) {
	for path, wantErr := range map[string]bool{
		"ipv4/conf/no-such-device/rp_filter": false,
		"../kernel/hostname":                 true,
		"/etc/hostname":                      true,
	} {
		inForce, err := Sysctl{path, "0", "1"}.InForce()
		if inForce || (err != nil) != wantErr {
			t.Errorf("%s: %t, %v", path, inForce, err)
		}
	}
}

// No field of the manifest is taken for a newer version's, which would be kept for good.
func TestAllFieldsAreKnown(t *testing.T) {
	names := map[string]json.RawMessage{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[State]()) {
		if f.IsExported() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names[name] = json.RawMessage("null")
		}
	}
	text, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if len(names) < 10 || len(s.Unknown()) > 0 {
		t.Errorf("of %d fields unknown are %q", len(names), s.Unknown())
	}
}
