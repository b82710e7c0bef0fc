package subnetfile

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
)

// dockerOptions is what the usual scripts make of the file: they source it,
// and masquerade in docker if the daemon doesn't.
const dockerOptions = `set -eu
. "$1"
if [ "$FLANNEL_IPMASQ" = true ]; then masq=false; else masq=true; fi
printf '%s' "--bip=$FLANNEL_SUBNET --ip-masq=$masq --mtu=$FLANNEL_MTU"
`

func TestSourcedForDocker(t *testing.T) {
	for _, c := range []struct {
		file File
		want string
	}{
		{
			File{Network: netip.MustParsePrefix("172.7.0.0/16"), Subnet: netip.MustParsePrefix("172.7.21.0/24"), MTU: 1450},
			"--bip=172.7.21.1/24 --ip-masq=true --mtu=1450",
		},
		{
			File{Network: netip.MustParsePrefix("10.0.0.0/8"), Subnet: netip.MustParsePrefix("10.200.0.0/20"), MTU: 8950, IPMasq: true},
			"--bip=10.200.0.1/20 --ip-masq=false --mtu=8950",
		},
	} {
		path := filepath.Join(t.TempDir(), "subnet.env")
		if err := c.file.Write(path); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", dockerOptions, "sh", path).CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("docker gets %s, %v; want %s", out, err, c.want)
		}
	}
}
