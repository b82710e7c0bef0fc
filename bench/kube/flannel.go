package kube

import (
	"context"
	_ "embed" // the manifest
	"errors"
	"os"
	"strings"

	"uvxlan/bench/flannelcni"
)

//go:embed flannel.yaml
var flannelManifest string

// InstallFlannel installs flannel on all nodes, with the flanneld that is beside the
// cluster's programs. The calling binary serves as its CNI plugin; see [flannelcni].
func (c *Cluster) InstallFlannel(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, os.WriteFile(n.Path("opt/cni/bin/flannel"), []byte(flannelcni.Script()), 0o755))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.Apply(ctx, strings.ReplaceAll(flannelManifest, "PROGRAMS", c.opts.Programs))
}
