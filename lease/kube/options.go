package kube

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
)

// Defaults of [Options], which are flannel's.
const (
	DefaultAnnotationPrefix = "flannel.alpha.coreos.com"
	DefaultConfigFile       = "/etc/kube-flannel/net-conf.json"
)

// Options say which cluster, and which of its Nodes this host is. Node, or Pod with
// PodNamespace, is required.
type Options struct {
	// URL is the API server's; empty means the kubeconfig's, or in a pod the
	// service's.
	URL string
	// Kubeconfig is the file that says how to get in (kubectl's). Empty means by the
	// pod's service account.
	Kubeconfig string
	// Node is this host's Node. Empty means that of the pod PodNamespace/Pod.
	Node              string
	PodNamespace, Pod string
	// AnnotationPrefix is that of the annotations' names; empty means
	// DefaultAnnotationPrefix. It has at most one slash. What follows its slash ends
	// with a dash, which is added if it isn't there.
	AnnotationPrefix string
	// ConfigFile has the network configuration; empty means DefaultConfigFile.
	ConfigFile string
	// LeaveCondition leaves the Node's condition NetworkUnavailable alone. Else it
	// is kept False while leases are watched.
	LeaveCondition bool
	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Check tells what is wrong with the options themselves, whether or not the API
// server answers.
func (o Options) Check() error {
	_, err := o.normal()
	return err
}

// prefixForm is what Kubernetes allows as the beginning of an annotation's name.
var prefixForm = regexp.MustCompile(`^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_.-]+-)?$`)

// normal returns the options with defaults filled in.
func (o Options) normal() (Options, error) {
	if o.Node == "" && (o.Pod == "" || o.PodNamespace == "") {
		return o, errors.New("kube: no node name, and no pod's name and namespace to find it by")
	}
	prefix := cmp.Or(o.AnnotationPrefix, DefaultAnnotationPrefix)
	if !strings.Contains(prefix, "/") {
		prefix += "/"
	}
	if !strings.HasSuffix(prefix, "/") && !strings.HasSuffix(prefix, "-") {
		prefix += "-"
	}
	if !prefixForm.MatchString(prefix) {
		return o, fmt.Errorf("kube: annotation prefix %q: must be a domain in lower case such as %s, with at most one slash and a name after it", o.AnnotationPrefix, DefaultAnnotationPrefix)
	}
	o.AnnotationPrefix = prefix
	if u, err := url.Parse(o.URL); o.URL != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		return o, fmt.Errorf("kube: API server %q: must be a URL such as https://192.0.2.1:6443", o.URL)
	}
	o.ConfigFile = cmp.Or(o.ConfigFile, DefaultConfigFile)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
