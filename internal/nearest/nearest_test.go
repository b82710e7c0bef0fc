package nearest

import "testing"

func TestName(t *testing.T) {
	known := []string{"status", "peers", "top", "leases", "config", "SubnetLen", "SubnetMin"}
	for name, want := range map[string]string{
		"statsu": "status", "stat": "status", "peer": "peers", "PEERS": "peers", "tpo": "top", "lease": "leases",
		"subnetlne": "SubnetLen", "SubnetMn": "SubnetMin", "frobnicate": "", "": "", "x": "", "ls": "",
	} {
		if got := Name(name, known); got != want {
			t.Errorf("%q is taken for %q, want %q", name, got, want)
		}
	}
	if got := Name("status", nil); got != "" {
		t.Errorf("without known names: %q", got)
	}
}
