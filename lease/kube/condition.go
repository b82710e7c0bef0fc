package kube

import (
	"context"
	"errors"
	"time"

	"uvxlan/lease"
)

// Bounds of how often the Node's condition is put right.
const (
	conditionPause = time.Second
	conditionRetry = 10 * time.Second
)

// wake has the Node's condition looked at. Every event of the Node does, since a
// condition isn't in the metadata.
func (r *Registry) wake() {
	select {
	case r.conditions <- struct{}{}:
	default: // that is due already
	}
}

// keepCondition keeps the Node's condition NetworkUnavailable False until ctx ends.
func (r *Registry) keepCondition(ctx context.Context) {
	if r.opts.LeaveCondition {
		return
	}
	failed := false
	for wait := time.Duration(0); ctx.Err() == nil; {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := r.assertAvailable(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && (failed || errors.Is(err, lease.ErrUnavailable) || errors.Is(err, lease.ErrUnassigned)):
			// It is said already.
		case err != nil:
			r.opts.Logger.Warn("the node's condition NetworkUnavailable can't be kept False: pods may stay away from it", "error", err)
		case err == nil && failed:
			r.opts.Logger.Info("the node's condition NetworkUnavailable is kept False again")
		}
		if err != nil {
			failed = failed || !errors.Is(err, lease.ErrUnavailable) && !errors.Is(err, lease.ErrUnassigned)
			wait = conditionRetry
			continue
		}
		failed = false
		wait = conditionPause
		select {
		case <-ctx.Done():
		case <-r.conditions:
		}
	}
}

// assertAvailable says that the node has its network, unless that is said.
func (r *Registry) assertAvailable(ctx context.Context) error {
	n, err := r.ownNode(ctx)
	if err != nil || n.available() {
		return err
	}
	now := time.Now().UTC().Format(time.RFC3339)
	_, err = r.patch(ctx, n, nil, map[string]any{"conditions": []map[string]string{{
		"type": networkUnavailable, "status": "False", "reason": "FlannelIsUp", "message": "uvxlan is running on this node",
		"lastTransitionTime": now, "lastHeartbeatTime": now,
	}}})
	if err == nil {
		r.opts.Logger.Info("the node's condition NetworkUnavailable is False", "node", n.Metadata.Name)
	}
	return err
}
