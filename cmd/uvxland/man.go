package main

import (
	"io"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/daemon"
	"uvxlan/cmd/internal/manpage"
	"uvxlan/cmd/internal/version"
)

// writeManual writes the daemon's manual page.
func writeManual(out io.Writer) error {
	_, fs := define()
	return manpage.Page{
		Name: "uvxland", Summary: "userspace VXLAN router that takes flanneld's place", Version: version.String(),
		Synopsis: []string{"[flags]", "completion bash|zsh|fish", "man"},
		Description: `uvxland joins this host's containers into one network with the containers of other
hosts, as flanneld does, on hosts whose kernel has no VXLAN. It reads the network
configuration from etcd, leases a subnet there, writes it to the subnet file for the
container runtime, and carries the packets between the hosts until it is stopped.

When it stops, the device and its routes go, and with them the way between the hosts;
host-gw's routes stay. The lease stays, so that the next start has the same subnet, and
so do the subnet file and the firewall rules. uvxlan cleanup removes what is left.

With the word completion it writes the script by which a shell completes the flags, with
the word man this page.`,
		Sections: []manpage.Section{
			{Title: "OPTIONS", Text: "A flag may have one dash or two.", Items: manpage.Flags(fs)},
			{Title: "ENVIRONMENT", Text: `Each flag that isn't on the command line is taken from its variable: FLANNELD_ and the
flag's name in capitals, with _ for -. So FLANNELD_ETCD_ENDPOINTS stands for
-etcd-endpoints.`},
			{Title: "FILES", Items: []manpage.Item{
				{Term: daemon.DefaultSubnetFile, Text: "the subnet and MTU, for container runtimes"},
				{Term: control.DefaultSocket, Text: "what uvxlan status, peers and top ask"},
				{Term: daemon.DefaultStateDir, Text: "what outlives the daemon: the stored leases, the record of changes to the host, the embedded etcd's data"},
				{Term: "/etc/uvxlan/uvxland.env", Text: "the flags' variables for the service of systemd"},
			}},
			{Title: "SIGNALS", Items: []manpage.Item{
				{Term: "SIGTERM, SIGINT, SIGQUIT", Text: "end"},
				{Term: "SIGUSR2", Text: "put the program that is on disk into the place of the running one, without losing a packet"},
			}},
			{Title: "EXIT STATUS", Items: []manpage.Item{
				{Term: "0", Text: "it was told to end"},
				{Term: "1", Text: "it can't go on; the last line of the log says why"},
				{Term: "2", Text: "the command line is wrong"},
			}},
		},
		SeeAlso: []string{"uvxlan(8)", "systemd.service(5)", "dockerd(8)"},
	}.Write(out)
}
