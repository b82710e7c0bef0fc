package etcd

import (
	"fmt"
	"net"
	"strings"
)

// defaultPort is where etcd takes clients.
const defaultPort = "2379"

// schemeOf is what stands before :// of an endpoint, or before the : of a unix
// socket; "" if there is none.
func schemeOf(endpoint string) string {
	if scheme, _, ok := strings.Cut(endpoint, "://"); ok {
		return scheme
	}
	if scheme, _, _ := strings.Cut(endpoint, ":"); scheme == "unix" || scheme == "unixs" {
		return scheme
	}
	return ""
}

// addressOf is what follows the scheme.
func addressOf(endpoint string) string {
	if _, address, ok := strings.Cut(endpoint, "://"); ok {
		return address
	}
	return endpoint
}

// checkEndpoint refuses what the client would only fail to dial, again and again.
func checkEndpoint(endpoint string) error {
	malformed := fmt.Errorf("etcd: endpoint %s: must be an URL such as http://192.168.14.21:%s", endpoint, defaultPort)
	switch schemeOf(endpoint) {
	case "", "http", "https":
	case "unix", "unixs":
		return nil // a socket in the file system
	default:
		return malformed
	}
	host, port, err := net.SplitHostPort(addressOf(endpoint))
	switch {
	case err != nil:
		return fmt.Errorf("etcd: endpoint %s has no port: write %s:%s", endpoint, endpoint, defaultPort)
	case host == "" || port == "":
		return malformed
	}
	return nil
}
