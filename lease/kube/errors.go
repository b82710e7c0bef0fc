package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"uvxlan/lease"
)

const roleWords = "it may need to get, list and watch nodes, to patch nodes/status, and to get pods where NODE_NAME isn't given"

// errNotFound says that an object isn't there.
var errNotFound = errors.New("not found")

// refusal is an answer of the API server that isn't the wanted one. It wraps one of
// package lease's errors.
type refusal struct {
	what, words string
	kind        error
}

func (e *refusal) Error() string { return e.what + ": " + e.words }
func (e *refusal) Unwrap() error { return e.kind }

// words puts an error of the library in package lease's terms.
func (c *client) words(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{lease.ErrUnavailable, lease.ErrReadOnly, lease.ErrCompacted, lease.ErrConflict} {
		if errors.Is(err, known) {
			return err
		}
	}
	var status apierrors.APIStatus
	answered := errors.As(err, &status)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		return fmt.Errorf("%s: %w", what, lease.ErrCompacted)
	case apierrors.IsNotFound(err):
		return &refusal{what, c.url + " has none", errNotFound}
	case apierrors.IsUnauthorized(err):
		return c.refused(what, "doesn't accept this host's credentials, which are read again with each attempt", err)
	case apierrors.IsForbidden(err):
		return c.refused(what, "doesn't allow it to this host's account ("+roleWords+")", err)
	case apierrors.IsTooManyRequests(err):
		return c.refused(what, "has too many requests", err)
	case answered:
		return c.refused(what, fmt.Sprintf("answers with status %d", status.Status().Code), err)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", callTimeout)
	}
	return &refusal{what, fmt.Sprintf("the API server at %s does not answer: %v", c.url, err), lease.ErrUnavailable}
}

func (c *client) refused(what, words string, err error) error {
	return &refusal{what, fmt.Sprintf("the API server at %s %s: %v", c.url, words, err), lease.ErrUnavailable}
}

// isWriteRefused tells whether reads may pass although a write is refused for good.
func isWriteRefused(err error) bool {
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err) {
		return true
	}
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code == http.StatusUnprocessableEntity
}
