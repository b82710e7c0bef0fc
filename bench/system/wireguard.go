package system

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/bench/lab"
)

const (
	// wireguardMTU leaves room for WireGuard over IPv4 on an underlay of 1500
	// bytes: 20 + 8 + 32.
	wireguardMTU  = 1440
	wireguardPort = 51820
	// wireguardSockets is where wireguard-go puts the socket of each interface,
	// whatever its network namespace.
	wireguardSockets = "/var/run/wireguard"
)

func init() {
	register(func(context.Context, Env) []System {
		s := System{
			Name: "wireguard-go", About: "wireguard-go, with its encryption", rank: others, MTU: wireguardMTU, Start: startWireguard,
		}
		for _, tool := range []string{"wireguard-go", "wg"} {
			if _, err := exec.LookPath(tool); err != nil {
				s.Missing = tool + " is not installed (apt-get install wireguard-go wireguard-tools)"
			}
		}
		return []System{s}
	})
}

func startWireguard(ctx context.Context, s *Site) error {
	keys := map[*lab.Host]*ecdh.PrivateKey{}
	for _, h := range s.Hosts() {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return fmt.Errorf("make WireGuard key: %w", err)
		}
		keys[h] = key
	}
	for _, h := range s.Hosts() {
		if err := s.addWireguard(ctx, h, keys); err != nil {
			return fmt.Errorf("wireguard-go on %s: %w", h.Name, err)
		}
	}
	return nil
}

func (s *Site) addWireguard(ctx context.Context, h *lab.Host, keys map[*lab.Host]*ecdh.PrivateKey) error {
	name, far := "wg-"+h.Name, s.other(h)
	socket := filepath.Join(wireguardSockets, name+".sock")
	s.atEnd(func() error { return os.RemoveAll(socket) })
	if err := s.launch(ctx, h, "wireguard-go", "-f", name); err != nil {
		return err
	}
	link, err := s.awaitWireguard(ctx, h, name, socket)
	if err != nil {
		return err
	}
	file := filepath.Join(s.Dir, h.Name+".key")
	if err := os.WriteFile(file, []byte(encode(keys[h].Bytes())), 0o600); err != nil {
		return err
	}
	_, err = h.Run(ctx, "wg", "set", name, "private-key", file, "listen-port", fmt.Sprint(wireguardPort),
		"peer", encode(keys[far].PublicKey().Bytes()), "allowed-ips", far.Subnet.String(),
		"endpoint", netip.AddrPortFrom(far.Address, wireguardPort).String())
	if err != nil {
		return err
	}
	nl := h.Netlink()
	return errors.Join(nl.LinkSetMTU(link, wireguardMTU), nl.LinkSetUp(link),
		nl.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(far.Subnet), Scope: netlink.SCOPE_LINK}))
}

func encode(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

// awaitWireguard waits until the interface is there and can be configured.
func (s *Site) awaitWireguard(ctx context.Context, h *lab.Host, name, socket string) (netlink.Link, error) {
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		link, err := h.Netlink().LinkByName(name)
		if err == nil {
			_, err = os.Stat(socket)
		}
		if err == nil {
			tick.Stop()
			return link, nil
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			return nil, errors.Join(err, s.Check())
		}
	}
}
