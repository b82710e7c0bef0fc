package main

import (
	"flag"
	"strings"

	"uvxlan/internal/cli"
)

// defineOld names flags of flannel's log, of now and of years ago: the log goes to
// standard error, whatever they say.
func defineOld(fs *flag.FlagSet) {
	const no = "accepted for flannel's sake, without effect"
	fs.String("vmodule", "", no)
	fs.String("log_backtrace_at", "", no)
	fs.String("log_dir", "", no)
	fs.String("stderrthreshold", "", no)
	fs.Bool("logtostderr", true, no)
	fs.Bool("alsologtostderr", false, no)
}

// What took the place of flags that flannel had years ago.
const (
	noServer = "flannel's server of leases is no more: give -etcd-endpoints instead"
	oneEach  = "a daemon has one network: start one for each, with an -etcd-prefix, -subnet-file, -state-dir and -control-socket of its own"
)

var gone = map[string]string{
	"listen": noServer, "remote": noServer, "remote-keyfile": noServer, "remote-certfile": noServer, "remote-cafile": noServer,
	"networks": oneEach, "subnet-dir": oneEach,
}

// checkGone refuses flags that flannel itself has no longer, in words of their own.
func checkGone(args []string) error {
	for _, a := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if instead, ok := gone[name]; ok && strings.HasPrefix(a, "-") {
			return cli.Usagef("-%s: %s", name, instead)
		}
	}
	return nil
}
