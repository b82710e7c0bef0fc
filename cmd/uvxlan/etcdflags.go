package main

import (
	"flag"
	"strings"

	"uvxlan/internal/cli"
	"uvxlan/lease/etcd"
)

// etcdFlags adds the flags that say which etcd to fs. The result is for use
// after parsing.
func etcdFlags(fs *flag.FlagSet) func() etcd.Options {
	var o etcd.Options
	endpoints := fs.String("etcd-endpoints", "http://127.0.0.1:2379", "comma-separated `URLs` of etcd")
	fs.StringVar(&o.Prefix, "etcd-prefix", etcd.DefaultPrefix, "etcd key `prefix` of the network")
	fs.StringVar(&o.CAFile, "etcd-cafile", "", "`file` of the certificates that etcd's is checked against")
	fs.StringVar(&o.CertFile, "etcd-certfile", "", "`file` of the client certificate for etcd")
	fs.StringVar(&o.KeyFile, "etcd-keyfile", "", "`file` of the client certificate's key")
	fs.StringVar(&o.Username, "etcd-username", "", "etcd user `name`")
	fs.StringVar(&o.Password, "etcd-password", "", "etcd `password`")
	return func() etcd.Options {
		o.Endpoints = strings.Split(*endpoints, ",")
		return o
	}
}

// openEtcd makes a registry by the flags.
func openEtcd(o etcd.Options) (*etcd.Registry, error) {
	if err := o.Check(); err != nil {
		return nil, cli.Usage(err)
	}
	return etcd.Open(o)
}
