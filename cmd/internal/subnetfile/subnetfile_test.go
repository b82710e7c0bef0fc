package subnetfile

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	f := File{Network: netip.MustParsePrefix("172.7.0.0/16"), Subnet: netip.MustParsePrefix("172.7.21.0/24"), MTU: 1450}
	for range 2 {
		if err := f.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	for place, mode := range map[string]os.FileMode{path: 0o644, filepath.Dir(path): os.ModeDir | 0o755} {
		if info, err := os.Stat(place); err != nil || info.Mode() != mode {
			t.Errorf("%s has the mode %v, %v; want %v", place, info.Mode(), err, mode)
		}
	}
	text, err := os.ReadFile(path)
	want := "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if err != nil || string(text) != want {
		t.Fatalf("the file is %q, %v", text, err)
	}
	if got, err := Read(path); err != nil || got != f {
		t.Fatalf("read back %+v, %v", got, err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Fatalf("left beside the file: %v, %v", entries, err)
	}
}

func TestWriteAndReadBothFamilies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	f := File{
		Network: netip.MustParsePrefix("10.42.0.0/16"), Subnet: netip.MustParsePrefix("10.42.0.0/24"),
		NetworkV6: netip.MustParsePrefix("2001:cafe:42::/56"), SubnetV6: netip.MustParsePrefix("2001:cafe:42::/64"),
		MTU: 1430, IPMasq: true,
	}
	if err := f.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	want := "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\n" +
		"FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
	if err != nil || string(text) != want {
		t.Fatalf("the file is %q, %v", text, err)
	}
	if got, err := Read(path); err != nil || got != f {
		t.Fatalf("read back %+v, %v", got, err)
	}
}

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "flannel", "subnet.env")
	for range 2 {
		if err := Prepare(path); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	for _, place := range []string{dir, "/proc/none/subnet.env", "/proc/subnet.env"} {
		if err := Prepare(place); !errors.Is(err, ErrPlace) {
			t.Errorf("%s: %v", place, err)
		}
	}
}

func TestReadWhatMakesNoSense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if got, err := Read(path); err != nil || got != (File{}) {
		t.Fatalf("no file: %+v, %v", got, err)
	}
	text := "# mine\nFLANNEL_SUBNET=\"172.7.21.1/24\"\nFLANNEL_MTU=x\n\nFLANNEL_IPMASQ=true\nFLANNEL_NETWORK=172.7.0.0/16"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := File{Network: netip.MustParsePrefix("172.7.0.0/16"), IPMasq: true}
	if got, err := Read(path); err != nil || got != want {
		t.Fatalf("read %+v, %v", got, err)
	}
}
