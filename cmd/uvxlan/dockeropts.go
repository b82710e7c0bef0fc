package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/atomicfile"
	"uvxlan/cmd/internal/subnetfile"
)

const dockerOptsUsage = `usage: uvxlan docker-opts [flags]   write dockerd's options, made from the subnet file

It does the work of flannel's mk-docker-opts.sh, and has its flags and its output.
With neither -i nor -c it writes both.

`

// dockerOption begins the variables that each have one of dockerd's options.
const dockerOption = "DOCKER_OPT_"

// dockerOpts is a command line of docker-opts.
type dockerOpts struct {
	from, to, key        string
	individual, combined bool
	noIPMasq             bool
}

func defineDockerOpts(fs *flag.FlagSet) action {
	var d dockerOpts
	fs.StringVar(&d.from, "f", subnetfile.DefaultPath, "subnet `file` to read")
	fs.StringVar(&d.to, "d", "/run/docker_opts.env", "environment `file` to write")
	fs.BoolVar(&d.individual, "i", false, "write a variable for each option, such as DOCKER_OPT_MTU")
	fs.BoolVar(&d.combined, "c", false, "write one variable with all options")
	fs.StringVar(&d.key, "k", "DOCKER_OPTS", "`name` of the variable with all options; what it has in the environment is put before them")
	fs.BoolVar(&d.noIPMasq, "m", false, "leave out --ip-masq")
	return func(context.Context, []string) error {
		return d.run(environment(os.Environ()))
	}
}

// environment is a list of NAME=value as a map.
func environment(all []string) map[string]string {
	m := map[string]string{}
	for _, variable := range all {
		name, value, _ := strings.Cut(variable, "=")
		m[name] = value
	}
	return m
}

// run writes the file, then refuses a host that has a route to its own subnet: its
// packets to the containers would leave by it.
func (d dockerOpts) run(variables map[string]string) error {
	if err := source(d.from, variables); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "uvxlan: there is no %s: uvxland has not written it, or to another place (its -subnet-file)\n", d.from)
	} else if err != nil {
		return fmt.Errorf("read subnet file: %w", err)
	}
	text, err := d.text(variables)
	if err != nil {
		return err
	}
	if err := writeEnvironment(d.to, text); err != nil {
		return fmt.Errorf("write dockerd's options: %w", err)
	}
	if subnet, err := netip.ParsePrefix(variables["FLANNEL_SUBNET"]); err == nil {
		return refuseRoute(subnet.Masked())
	}
	return nil
}

// source adds the variables of a file to those of the environment.
func source(path string, variables map[string]string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export "), "=")
		if ok && !strings.HasPrefix(name, "#") {
			variables[name] = unquote(value)
		}
	}
	return lines.Err()
}

// unquote takes a shell's quotes off a value.
func unquote(value string) string {
	value = strings.TrimSpace(value)
	for _, q := range []string{`"`, "'"} {
		if len(value) >= 2 && strings.HasPrefix(value, q) && strings.HasSuffix(value, q) {
			return value[1 : len(value)-1]
		}
	}
	return value
}

// text is the file of these variables. It has DOCKER_OPT_ variables of the
// environment too.
func (d dockerOpts) text(variables map[string]string) (string, error) {
	options := map[string]string{}
	for name, value := range variables {
		if strings.HasPrefix(name, dockerOption) {
			options[name] = value
		}
	}
	if subnet := variables["FLANNEL_SUBNET"]; subnet != "" {
		options[dockerOption+"BIP"] = "--bip=" + subnet
	}
	if mtu := variables["FLANNEL_MTU"]; mtu != "" {
		options[dockerOption+"MTU"] = "--mtu=" + mtu
	}
	switch masq := variables["FLANNEL_IPMASQ"]; {
	case d.noIPMasq, masq == "":
	case masq == "true":
		options[dockerOption+"IPMASQ"] = "--ip-masq=false" // one of the two masquerades
	case masq == "false":
		options[dockerOption+"IPMASQ"] = "--ip-masq=true"
	default:
		return "", fmt.Errorf("%s: FLANNEL_IPMASQ=%s: must be true or false", d.from, masq)
	}
	both := d.individual == d.combined
	var b strings.Builder
	all := variables[d.key]
	if all != "" {
		all += " "
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if d.individual || both {
			fmt.Fprintf(&b, "%s=\"%s\"\n", name, options[name])
		}
		all += " " + options[name]
	}
	if d.combined || both {
		fmt.Fprintf(&b, "%s=\"%s\"\n", d.key, all)
	}
	return b.String(), nil
}

// writeEnvironment replaces the file, or writes to what else is there, such as the link
// /dev/stdout.
func writeEnvironment(path, text string) error {
	info, err := os.Lstat(path) // an atomic write would replace a link
	if err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(path, []byte(text), 0o644)
	}
	return atomicfile.Write(path, []byte(text))
}

// refuseRoute returns an error if the kernel sends what is for the subnet to a
// gateway.
func refuseRoute(subnet netip.Prefix) error {
	if !subnet.Addr().Is4() {
		return nil
	}
	to := &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: to}, netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", subnet, err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			return fmt.Errorf("the kernel has a route to this host's own subnet %s via %s: remove it with ip route del %s via %s",
				subnet, r.Gw, subnet, r.Gw)
		}
	}
	return nil
}
