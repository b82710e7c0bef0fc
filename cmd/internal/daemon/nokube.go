//go:build nokube

package daemon

import (
	"context"
	"errors"

	"uvxlan/cmd/internal/handover"
)

// HasKube tells whether leases may be in Kubernetes.
const HasKube = false

var errNoKube = errors.New("this program was built without Kubernetes (build tag nokube)")

// Check tells what is wrong with the options.
func (KubeOptions) Check() error { return errNoKube }

func runKube(context.Context, Options, *reloader, *handover.State) (*handover.State, error) {
	return nil, errNoKube
}
