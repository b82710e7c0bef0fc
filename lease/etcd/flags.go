package etcd

import (
	"slices"
	"strings"
)

// Flags are the flags of uvxland and uvxlan that say the same as the options, each
// after a blank, but for those that say what uvxlan takes by itself, and the password,
// which FLANNELD_ETCD_PASSWORD has.
func (o Options) Flags() string {
	return flagsOf(o.distant(), [][2]string{
		{"-etcd-endpoints", strings.Join(o.Endpoints, ",")}, {"-etcd-prefix", o.otherPrefix()},
		{"-etcd-cafile", o.CAFile}, {"-etcd-certfile", o.CertFile}, {"-etcd-keyfile", o.KeyFile}, {"-etcd-username", o.Username},
	})
}

// etcdctlFlags are those of etcdctl. It asks for the user's password.
func (o Options) etcdctlFlags() string {
	return flagsOf(o.distant(), [][2]string{
		{"--endpoints", strings.Join(o.Endpoints, ",")}, {"--cacert", o.CAFile}, {"--cert", o.CertFile}, {"--key", o.KeyFile}, {"--user", o.Username},
	})
}

// flagsOf writes those that have a value; the first, the endpoints, if they are
// distant.
func flagsOf(distant bool, flags [][2]string) string {
	var b strings.Builder
	for i, f := range flags {
		if f[1] != "" && (i > 0 || distant) {
			b.WriteString(" " + f[0] + " " + f[1])
		}
	}
	return b.String()
}

// distant tells whether the commands must be told the endpoints: they take this
// machine's by themselves.
func (o Options) distant() bool {
	return !slices.Contains(o.Endpoints, "http://127.0.0.1:2379")
}

func (o Options) otherPrefix() string {
	if o.Prefix == DefaultPrefix {
		return ""
	}
	return o.Prefix
}
