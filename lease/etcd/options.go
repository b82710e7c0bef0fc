package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// DefaultPrefix is flannel's.
const DefaultPrefix = "/coreos.com/network"

const (
	// callTimeout bounds one call.
	callTimeout = 10 * time.Second
	// pageSize is how many leases one call reads: some 2 MB, below the 4 MB that
	// gRPC's own limit is for whatever is between.
	pageSize = 10_000
	// window is how much may be on its way. As it is fixed, gRPC doesn't measure
	// the line, which takes a ping beside each message.
	window = 4 << 20
	// pingInterval and pingTimeout are how soon a silent server is given up;
	// gRPC allows no shorter interval.
	pingInterval, pingTimeout = 10 * time.Second, 3 * time.Second
	// reconnectMax bounds the wait between connection attempts, which gRPC
	// would let grow to two minutes.
	reconnectMax = 3 * time.Second
	// tries lets a read be repeated on another member; longer waiting is the
	// caller's.
	tries = 3
)

// Options say which etcd and how to get in. Endpoints is required.
type Options struct {
	// Endpoints are URLs; any one that answers will do.
	Endpoints []string
	// Prefix is the cluster's key prefix; empty means DefaultPrefix.
	Prefix string
	// CAFile holds the certificates that a server's is checked against; empty
	// means the system's.
	CAFile string
	// CertFile and KeyFile are the client's certificate; both or neither.
	CertFile, KeyFile string
	// Username and Password are etcd's own; empty means no authentication.
	Username, Password string
	// Dial opens the connection to address, "host:port"; nil means from the
	// calling process's own network. It lets etcd be in another network
	// namespace.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Logger defaults to one that discards.
	Logger *slog.Logger

	connections *connections // set by normal
}

// Check tells what is wrong with the options themselves, whatever the files they name
// hold and whether or not etcd answers.
func (o Options) Check() error {
	_, err := o.normal()
	return err
}

// normal returns the options with defaults filled in.
func (o Options) normal() (Options, error) {
	if len(o.Endpoints) == 0 {
		return o, errors.New("etcd: no endpoints")
	}
	endpoints := make([]string, len(o.Endpoints))
	for i, e := range o.Endpoints {
		endpoints[i] = strings.TrimRight(strings.TrimSpace(e), "/")
		if endpoints[i] == "" {
			return o, fmt.Errorf("etcd: an empty endpoint among %q", o.Endpoints)
		}
		if err := checkEndpoint(endpoints[i]); err != nil {
			return o, err
		}
		// The client would use the first one's way for all of them.
		if strings.HasPrefix(endpoints[i], "https://") != strings.HasPrefix(endpoints[0], "https://") {
			return o, fmt.Errorf("etcd: endpoints with and without TLS among %q: write https:// in all or in none", o.Endpoints)
		}
	}
	o.Endpoints = endpoints
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	o.Prefix = strings.TrimRight(o.Prefix, "/")
	o.connections = &connections{}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// clientConfig is the client's, with TLS by these files.
func (o Options) clientConfig(files *certificates) clientv3.Config {
	c := clientv3.Config{
		Endpoints:            o.Endpoints,
		DialKeepAliveTime:    pingInterval,
		DialKeepAliveTimeout: pingTimeout,
		MaxUnaryRetries:      tries,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(connectParams()),
			grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
			grpc.WithChainUnaryInterceptor(failFast),
		},
	}
	if o.Username != "" {
		t := &tokens{name: o.Username, password: o.Password}
		c.DialOptions = append(c.DialOptions, grpc.WithPerRPCCredentials(t),
			grpc.WithChainUnaryInterceptor(t.unary), grpc.WithChainStreamInterceptor(t.stream))
	}
	if o.Dial != nil {
		c.DialOptions = append(c.DialOptions, grpc.WithContextDialer(o.Dial))
	}
	c.DialOptions = append(c.DialOptions, grpc.WithTransportCredentials(o.transport(files)))
	return c
}

// transport is what the client would choose by itself, paced, and with files that
// are read again.
func (o Options) transport(files *certificates) credentials.TransportCredentials {
	if o.hasTLS() {
		return paced{newRereading(files), o.connections}
	}
	return paced{insecure.NewCredentials(), o.connections}
}

// hasTLS tells whether the endpoints are asked by TLS. One that doesn't say is so if
// there are files for it.
func (o Options) hasTLS() bool {
	switch schemeOf(o.Endpoints[0]) {
	case "https", "unixs":
		return true
	case "http":
		return false
	}
	return o.CAFile != "" || o.CertFile != ""
}

func connectParams() grpc.ConnectParams {
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = 100*time.Millisecond, reconnectMax
	return grpc.ConnectParams{Backoff: b, MinConnectTimeout: 5 * time.Second}
}
