package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/internal/cli"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

const configUsage = `usage: uvxlan config get                  print the configuration in etcd
       uvxlan config set JSON|FILE|-     check a configuration and write it
       uvxlan config check [JSON|FILE|-] check one, by default the one in etcd

`

// defineConfig reads, checks or writes <prefix>/config.
func defineConfig(fs *flag.FlagSet) action {
	options, socket, output := etcdFlags(fs), socketFlag(fs), outputFlag(fs, os.Stdout)
	return func(ctx context.Context, words []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		byEtcd := false
		fs.Visit(func(f *flag.Flag) { byEtcd = byEtcd || strings.HasPrefix(f.Name, "etcd-") })
		if !byEtcd && needsEtcd(words) && isInKubernetes(ctx, *socket) {
			return errInKubernetes
		}
		return p.config(ctx, options(), words)
	}
}

// errInKubernetes says where the configuration is that isn't in etcd.
var errInKubernetes = errors.New("this host's daemon takes leases from Kubernetes, and its network configuration from the file of -net-config-path: " +
	"change that, mostly a ConfigMap, and start the daemons again; for an etcd's, say which, with -etcd-endpoints")

func needsEtcd(words []string) bool { return len(words) != 2 || words[0] != "check" }

// isInKubernetes tells whether there is a daemon on this host whose leases are there.
func isInKubernetes(ctx context.Context, socket string) bool {
	s, err := control.NewClient(socket).Status(ctx)
	return err == nil && s.Kubernetes != nil
}

func (p *printer) config(ctx context.Context, o etcd.Options, words []string) error {
	switch {
	case slices.Equal(words, []string{"get"}):
		text, err := stored(ctx, o)
		if err == nil {
			fmt.Fprintln(p.out, strings.TrimSpace(text)) // it is JSON already
		}
		return err
	case slices.Equal(words, []string{"check"}):
		text, err := stored(ctx, o)
		if err != nil {
			return err
		}
		return p.check(text)
	case len(words) == 2 && words[0] == "check":
		text, err := readConfig(words[1], os.Stdin)
		if err != nil {
			return err
		}
		return p.check(text)
	case len(words) == 2 && words[0] == "set":
		return p.set(ctx, o, words[1])
	case len(words) == 3 && strings.HasPrefix(words[1], "/"): // as etcdctl has it
		return cli.Usagef("config %s: leave the key %s away: it is that of -etcd-prefix (%s) with /config", words[0], words[1], o.Prefix)
	}
	fmt.Fprint(os.Stderr, configUsage)
	return cli.Usagef("config: must be followed by get, set or check, as above")
}

func (p *printer) check(text string) error {
	c, err := parse(text)
	if err != nil {
		return err
	}
	if p.json {
		return p.writeJSON(struct {
			Valid   bool                 `json:"valid"`
			Unknown []lease.UnknownField `json:"unknown,omitempty"`
			Config  *lease.Config        `json:"config"`
		}{true, lease.UnknownFields([]byte(text)), c})
	}
	fmt.Fprintln(p.out, "the configuration is valid:")
	return p.table(understood(c))
}

// parse reads a configuration, and warns of fields without effect.
func parse(text string) (*lease.Config, error) {
	c, err := lease.ParseConfig([]byte(text))
	if err != nil {
		return nil, err
	}
	for _, f := range lease.UnknownFields([]byte(text)) {
		fmt.Fprintf(os.Stderr, "warning: %s\n", f)
	}
	return c, nil
}

// understood is what a configuration means, with its defaults.
func understood(c *lease.Config) [][]string {
	rows := [][]string{
		{"network", c.Network.String()},
		{"subnets", fmt.Sprintf("/%d, from %s to %s", c.SubnetLen, c.SubnetMin, c.SubnetMax)},
	}
	if c.EnableIPv6 {
		rows = append(rows, []string{"ipv6 network", c.IPv6Network.String()},
			[]string{"ipv6 subnets", fmt.Sprintf("/%d, from %s to %s", c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax)})
	}
	rows = append(rows, []string{"backend", c.Backend.Type})
	if c.Backend.Type == lease.TypeVXLAN {
		rows = append(rows, understoodVXLAN(c.Backend)...)
	}
	firewall := "iptables"
	if c.EnableNFTables {
		firewall = "nftables"
	}
	return append(rows, []string{"firewall", firewall})
}

func understoodVXLAN(b lease.Backend) [][]string {
	mtu, direct := "the interface's", "no"
	if b.MTU > 0 {
		mtu = fmt.Sprint(b.MTU)
	}
	if b.DirectRouting {
		direct = "to peers on one network, by " + b.DirectMode
	}
	return [][]string{{"vni", fmt.Sprint(b.VNI)}, {"port", fmt.Sprint(b.Port)}, {"underlay mtu", mtu}, {"direct routing", direct}}
}

// stored is the configuration in etcd.
func stored(ctx context.Context, o etcd.Options) (string, error) {
	registry, err := openEtcd(o)
	if err != nil {
		return "", err
	}
	defer registry.Close()
	text, err := registry.Config(ctx)
	return string(text), err
}

// etcdPatience is how long set waits for an etcd that is just starting.
const etcdPatience = 10 * time.Second

// set writes a configuration that is valid, and no other.
func (p *printer) set(ctx context.Context, o etcd.Options, arg string) error {
	text, err := readConfig(arg, os.Stdin)
	if err != nil {
		return err
	}
	c, err := parse(text)
	if err != nil {
		return err
	}
	registry, err := openEtcd(o)
	if err != nil {
		return err
	}
	defer registry.Close()
	before, err := waitForEtcd(ctx, registry)
	if err != nil && !errors.Is(err, lease.ErrNoConfig) {
		return err
	}
	if err := registry.SetConfig(ctx, []byte(text)); err != nil {
		return err
	}
	if p.json {
		return p.writeJSON(map[string]bool{"written": true})
	}
	fmt.Fprintln(p.out, effect(before, c))
	return nil
}

// waitForEtcd reads the configuration that there is, from an etcd that may be just
// starting.
func waitForEtcd(ctx context.Context, r *etcd.Registry) ([]byte, error) {
	late := time.Now().Add(etcdPatience)
	for told := false; ; told = true {
		text, err := r.Config(ctx)
		if !errors.Is(err, lease.ErrUnavailable) || time.Now().After(late) {
			return text, err
		}
		if !told {
			fmt.Fprintf(os.Stderr, "waiting for etcd: %v\n", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// effect says when what was written takes effect.
func effect(before []byte, after *lease.Config) string {
	c, err := lease.ParseConfig(before)
	switch {
	case err != nil:
		return "written: daemons that wait for a configuration start with it now"
	case *c == *after:
		return "written: it means the same as the one before"
	}
	return "written: each daemon that runs keeps the configuration before until it restarts, and says so in uvxlan status"
}

// readConfig takes JSON as it stands, also with the backslashes that a log puts before
// quotes, "-" for what comes from in, and anything else as a file's name.
func readConfig(arg string, in io.Reader) (string, error) {
	if strings.HasPrefix(strings.TrimSpace(arg), "{") {
		if plain, err := strconv.Unquote(`"` + arg + `"`); err == nil { // its own quotes have no backslash otherwise
			return plain, nil
		}
		return arg, nil
	}
	var text []byte
	var err error
	if arg == "-" {
		text, err = io.ReadAll(in)
	} else {
		text, err = os.ReadFile(arg)
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return string(text), nil
}
