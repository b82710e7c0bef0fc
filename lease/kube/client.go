package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	metascheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"

	"uvxlan/lease"
)

const (
	// callTimeout bounds one call.
	callTimeout = 10 * time.Second
	// retries is how often a call is repeated that the API server wants later, after
	// the time that it says.
	retries = 2
	// jsonForm and metadataForm are what answers are to be in.
	jsonForm     = "application/json"
	metadataForm = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1," +
		"application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
)

// client is the way to the API server. It is the library's, which reads tokens and
// certificates again as they rotate.
type client struct {
	rest *rest.RESTClient
	http *http.Client
	url  string
	ctx  context.Context //nolint:containedctx // ends every call
	end  context.CancelFunc
}

func newClient(o Options) (*client, error) {
	config, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // the calls are few
	config.UserAgent = "uvxlan"
	config.WarningHandlerWithContext = rest.NoWarnings{}
	config.NegotiatedSerializer = metascheme.Codecs.WithoutConversion()
	config.GroupVersion, config.APIPath = &schema.GroupVersion{}, "/api"
	if file := config.BearerTokenFile; file != "" {
		// The library by itself would go on with a token that is refused for a minute.
		config.BearerToken, config.BearerTokenFile = "", ""
		config.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedFileTokenSource(file)))
	}
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	c, err := rest.RESTClientForConfigAndClient(config, h)
	if err != nil {
		return nil, err
	}
	cl := &client{rest: c, http: h, url: config.Host}
	cl.ctx, cl.end = context.WithCancel(context.Background())
	return cl, nil
}

// restConfig says how to get in.
func restConfig(o Options) (*rest.Config, error) {
	if o.Kubeconfig != "" {
		return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig},
			&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: o.URL}},
		).ClientConfig()
	}
	c, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster) && o.URL != "":
		return &rest.Config{Host: o.URL}, nil
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("there is no service account, as in a pod, and no kubeconfig")
	case err != nil:
		return nil, fmt.Errorf("service account: %w", err)
	case o.URL != "":
		c.Host = o.URL
	}
	return c, nil
}

func (c *client) close() {
	c.end()
	c.http.CloseIdleConnections()
}

// connect returns the client. It is made on first use, since it reads files, for which
// to wait is better than to fail.
func (r *Registry) connect() (*client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("kubernetes: %w", net.ErrClosed)
	}
	if r.client == nil {
		c, err := newClient(r.opts)
		if err != nil {
			return nil, fmt.Errorf("%w: no way to the API server: %w", lease.ErrUnavailable, err)
		}
		r.client = c
	}
	return r.client, nil
}

// call runs op with a client and a time limit and puts its error in words.
func (r *Registry) call(ctx context.Context, what string, op func(context.Context, *rest.RESTClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.unlimited(ctx, what, op)
}

// unlimited is call without a time limit.
func (r *Registry) unlimited(ctx context.Context, what string, op func(context.Context, *rest.RESTClient) error) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	err = op(klog.NewContext(limited, logr.Discard()), c.rest)
	if err != nil && c.ctx.Err() != nil {
		return fmt.Errorf("kubernetes: %w", net.ErrClosed)
	}
	return c.words(ctx, what, err)
}
