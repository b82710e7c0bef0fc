package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/bench/lab"
	"uvxlan/lease/etcd"
)

// story tells what happens while it happens: a line a step, with its time.
type story struct {
	out    io.Writer
	colour bool
	start  time.Time
}

func newStory(o options) *story { return &story{out: o.out, colour: o.colour} }

// Ways to write on a terminal, by the parameters of ECMA-48's SGR.
const (
	bold  = "1"
	green = "32"
)

// in is the text in a way to write, if there are colours.
func (s *story) in(way, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + way + "m" + text + "\x1b[m"
}

func (s *story) step(what string) {
	s.start = time.Now()
	fmt.Fprintf(s.out, "  %-66s", what)
}

func (s *story) done(result string) {
	if result == "" {
		result = time.Since(s.start).Round(time.Millisecond).String()
	}
	fmt.Fprintln(s.out, s.in(green, result))
}

func (s *story) title(text string) { fmt.Fprintf(s.out, "\n%s\n", s.in(bold, text)) }

func (s *story) line(format string, args ...any) { fmt.Fprintf(s.out, "  "+format+"\n", args...) }

func gbits(bitsPerSecond float64) string { return fmt.Sprintf("%.2f Gbit/s", bitsPerSecond/1e9) }

func (d *demo) showConfig(ctx context.Context) error {
	registry, err := d.cluster.Open()
	if err != nil {
		return err
	}
	defer registry.Close()
	text, err := registry.Config(ctx)
	if err != nil {
		return err
	}
	d.say.title("the configuration in etcd: " + etcd.DefaultPrefix + "/config")
	d.say.line("%s", text)
	return nil
}

func (d *demo) showLeases(ctx context.Context) error {
	registry, err := d.cluster.Open()
	if err != nil {
		return err
	}
	defer registry.Close()
	leases, _, err := registry.List(ctx)
	if err != nil {
		return err
	}
	d.say.title("the leases in etcd: " + etcd.DefaultPrefix + "/subnets/…")
	for _, l := range leases {
		value, err := json.Marshal(l.Attrs)
		if err != nil {
			return fmt.Errorf("show lease: %w", err)
		}
		// In two lines, since a terminal may have no more than 80 columns.
		before, data, _ := strings.Cut(string(value), `"BackendData"`)
		d.say.line("%-15s %s", l.Key(), before)
		d.say.line("%-15s %q%s", "", "BackendData", data)
	}
	return nil
}

// showDevices prints each host's end of the overlay as the kernel has it.
func (d *demo) showDevices(context.Context) error {
	for _, h := range d.lab.Hosts() {
		nl := h.Netlink()
		link, err := nl.LinkByName("flannel.1")
		if err != nil {
			return fmt.Errorf("show device of %s: %w", h.Name, err)
		}
		addrs, addrErr := nl.AddrList(link, netlink.FAMILY_V4)
		routes, routeErr := nl.RouteList(nil, netlink.FAMILY_V4)
		if err := errors.Join(addrErr, routeErr); err != nil {
			return fmt.Errorf("show device of %s: %w", h.Name, err)
		}
		var own []string
		for _, a := range addrs {
			own = append(own, a.IPNet.String())
		}
		d.say.title(h.Name)
		d.say.line("flannel.1  %s  mtu %d  %s", link.Type(), link.Attrs().MTU, strings.Join(own, " "))
		for _, r := range routes {
			if text := describe(nl, r); text != "" {
				d.say.line("route      %s", text)
			}
		}
	}
	fmt.Fprintln(d.out)
	return nil
}

// describe is a route in iproute2's words.
func describe(nl *netlink.Handle, r netlink.Route) string {
	link, err := nl.LinkByIndex(r.LinkIndex)
	if err != nil {
		return ""
	}
	text := "default"
	if r.Dst != nil && !r.Dst.IP.Equal(net.IPv4zero) {
		text = r.Dst.String()
	}
	if r.Gw != nil {
		text += " via " + r.Gw.String()
	}
	return text + " dev " + link.Attrs().Name
}

// summary is the table at the end.
func (d *demo) summary(context.Context) error {
	hosts := d.lab.Hosts()
	d.say.title(fmt.Sprintf("round trip of %d bytes between containers", fullSize))
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := []string{"", ""}
	for _, to := range hosts {
		row = append(row, to.Container.Name)
	}
	fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	for _, from := range hosts {
		row := []string{"", from.Container.Name}
		for _, to := range hosts {
			row = append(row, d.rttOf(from, to))
		}
		fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	d.say.title("one TCP stream between containers")
	for _, r := range d.rates {
		d.say.line("%s (%s) -> %s (%s) %s  %s, %d retransmits", r.from.Container.Name, r.from.Container.Address,
			r.to.Container.Name, r.to.Container.Address, d.path(r.from, r.to), gbits(r.BitsPerSecond), r.Retransmits)
	}
	fmt.Fprintln(d.out)
	return nil
}

func (d *demo) rttOf(from, to *lab.Host) string {
	if from == to {
		return "-"
	}
	return d.rtt[[2]string{from.Name, to.Name}].Round(time.Microsecond).String()
}
