package etcd

import (
	"fmt"
	"net/http"
	"net/url"
)

// viaProxy says by which proxy etcd is asked, "" if by none. gRPC takes the one that
// the environment has for the first endpoint, and for endpoints without TLS too.
func (r *Registry) viaProxy() string {
	if r.opts.Dial != nil {
		return ""
	}
	address := addressOf(r.opts.Endpoints[0])
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil || proxy == nil {
		return ""
	}
	host := (&url.URL{Host: address}).Hostname()
	return fmt.Sprintf(" (through proxy %s of HTTPS_PROXY: set NO_PROXY=%s if etcd is reached without it)", proxy.Redacted(), host)
}
