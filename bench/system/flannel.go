package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

func init() {
	register(func(context.Context, Env) (all []System) {
		path, err := exec.LookPath("flanneld")
		for _, backend := range []string{"udp", "vxlan"} {
			s := System{
				Name: "flannel-" + backend, About: "flanneld with its backend " + backend, rank: others,
				Start: func(ctx context.Context, s *Site) error { return startFlannel(ctx, s, path, backend) },
			}
			if err != nil {
				s.Missing = "no flanneld in PATH"
			}
			all = append(all, s)
		}
		return all
	})
}

func startFlannel(ctx context.Context, s *Site, path, backend string) error {
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	// With nftables, flanneld doesn't insist on br_netfilter.
	_, noNFT := exec.LookPath("nft")
	config := fmt.Sprintf(`{"Network":"172.7.0.0/16","EnableNFTables":%t,"Backend":{"Type":%q}}`, noNFT == nil, backend)
	registry, err := s.cluster(Daemon{}).Open()
	if err != nil {
		return err
	}
	defer registry.Close()
	if err := registry.SetConfig(limited, []byte(config)); err != nil {
		return err
	}
	for _, h := range s.Hosts() {
		if err := s.addFlannel(ctx, limited, h, path); err != nil {
			return fmt.Errorf("flanneld on %s: %w", h.Name, err)
		}
	}
	return nil
}

// addFlannel starts a daemon, which ends with ctx, and waits until limited ends
// for it to be ready.
func (s *Site) addFlannel(ctx, limited context.Context, h *lab.Host, path string) error {
	// The subnet file of an earlier run makes it ask for the same subnet again.
	file := filepath.Join(s.Dir, h.Name+"-subnet.env")
	previous := "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=" + h.Container.Address.Prev().String() + "/24\n"
	if err := os.WriteFile(file, []byte(previous), 0o644); err != nil {
		return err
	}
	err := s.launch(ctx, h, path, "-etcd-endpoints="+s.Endpoint, "-etcd-prefix="+s.Prefix, "-iface=eth0",
		"-subnet-file="+file, "-ip-masq=false", "-iptables-forward-rules=false")
	if err != nil {
		return err
	}
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		text, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(text), "FLANNEL_MTU=") {
			tick.Stop()
			return nil
		}
		ended := s.Check()
		if ended != nil {
			return ended
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			return errors.Join(limited.Err(), err)
		}
	}
}
