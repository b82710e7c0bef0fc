// Netstack joins one process to the overlay of other hosts' containers with
// nothing but a UDP socket: no privilege, no /dev/net/tun, no change to the
// host. The process has a TCP/IP stack of its own, wireguard-go's netstack, by
// which it serves a page inside the overlay or fetches one.
//
// With etcd it takes a lease, as a host of flannel's does:
//
//	netstack -address 192.168.14.22 -etcd-endpoints http://192.168.14.21:2379 -get http://172.7.21.2/
//
// Without, both sides are told of each other:
//
//	netstack -address 192.168.14.22 -subnet 172.7.22.0/24 -peer 172.7.31.0/24,192.168.15.31,02:00:c0:a8:0f:1f -listen :80
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"uvxlan/lease/etcd"
	"uvxlan/tunnel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "netstack:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	address   netip.Addr
	endpoints string
	prefix    string
	byHand    membership
	listen    string
	get       string
}

func parse(args []string) (*options, error) {
	o := &options{byHand: membership{vni: 1, port: 4789, mtu: 1450}}
	fs := flag.NewFlagSet("netstack", flag.ContinueOnError)
	fs.TextVar(&o.address, "address", netip.Addr{}, "`address` of this machine that the other hosts reach")
	fs.StringVar(&o.endpoints, "etcd-endpoints", "", "comma-separated `URLs` of etcd, where the leases are")
	fs.StringVar(&o.prefix, "etcd-prefix", etcd.DefaultPrefix, "etcd key `prefix` of the network")
	fs.Func("subnet", "without etcd: our `subnet`", func(s string) (err error) {
		o.byHand.subnet, err = netip.ParsePrefix(s)
		return err
	})
	fs.Func("peer", "without etcd: another host's `subnet,address,MAC`, may be repeated", func(s string) error {
		p, err := parsePeer(s)
		o.byHand.peers = append(o.byHand.peers, p)
		return err
	})
	fs.StringVar(&o.listen, "listen", "", "`address` inside the overlay to serve on, such as :80")
	fs.StringVar(&o.get, "get", "", "`URL` inside the overlay to fetch")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	switch {
	case !o.address.Is4():
		return nil, errors.New("-address: give an IPv4 address of this machine")
	case (o.endpoints == "") == !o.byHand.subnet.IsValid():
		return nil, errors.New("give either -etcd-endpoints, or -subnet and -peer")
	case (o.listen == "") == (o.get == ""):
		return nil, errors.New("give either -listen or -get")
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	m := &o.byHand
	if o.endpoints != "" {
		registry, err := etcd.Open(etcd.Options{Endpoints: strings.Split(o.endpoints, ","), Prefix: o.prefix})
		if err != nil {
			return err
		}
		defer registry.Close()
		if m, err = acquire(ctx, registry, o.address); err != nil {
			return err
		}
	}
	n, err := join(o.address, m)
	if err != nil {
		return err
	}
	defer n.router.Close()
	slog.Info("joined the overlay", "address", n.address, "subnet", m.subnet, "mac", macOf(o.address).String())

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	failed := make(chan error, 2)
	running.Go(func() { failed <- n.router.Run(ctx) })
	loaded := make(chan struct{})
	running.Go(func() { failed <- m.follow(ctx, n.router, loaded) })
	select {
	case <-loaded:
	case err := <-failed:
		return err
	}
	if o.get != "" {
		return n.fetch(ctx, o.get, os.Stdout)
	}
	running.Go(func() { failed <- n.serve(ctx, o.listen) })
	return <-failed
}

// fetch copies what is at a URL of the overlay.
func (n *node) fetch(ctx context.Context, url string, to io.Writer) error {
	transport := &http.Transport{DialContext: n.stack.DialContext}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(to, answer.Body)
	return err
}

// serve answers whoever asks in the overlay: a POST gets its body back. It
// returns when ctx ends.
func (n *node) serve(ctx context.Context, address string) error {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return err
	}
	listener, err := n.stack.ListenTCP(at)
	if err != nil {
		return fmt.Errorf("listen on %s in the overlay: %w", address, err)
	}
	slog.Info("serving", "url", "http://"+net.JoinHostPort(n.address.String(), fmt.Sprint(at.Port))+"/")
	server := &http.Server{Handler: http.HandlerFunc(answer)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		_, _ = io.Copy(w, r.Body) // the client is gone
		return
	}
	fmt.Fprintf(w, "Hello %s, this is a process without privileges.\n", r.RemoteAddr)
}

// node is the process's place in the overlay.
type node struct {
	router  *tunnel.Router
	stack   stack
	address netip.Addr
}
