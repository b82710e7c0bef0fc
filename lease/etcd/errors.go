package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"uvxlan/lease"
)

// unavailable says in words that etcd doesn't answer and why. It wraps
// lease.ErrUnavailable.
type unavailable struct {
	endpoints []string
	reason    string
}

func (e *unavailable) Error() string {
	return fmt.Sprintf("etcd at %s does not answer: %s", strings.Join(e.endpoints, ", "), e.reason)
}

func (e *unavailable) Unwrap() error { return lease.ErrUnavailable }

// words turns the client's error into one of package lease's, or wraps it with
// what was being done. ctx is the caller's, without the call's own limit.
func (r *Registry) words(ctx context.Context, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case isOurs(err):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%s: %w", what, lease.ErrCompacted)
	case errors.Is(err, context.DeadlineExceeded):
		return &unavailable{r.opts.Endpoints, fmt.Sprintf("no answer within %s", callTimeout)}
	}
	switch code, text := meaning(err); code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return &unavailable{r.opts.Endpoints, reason(text)}
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%s: etcd refuses: %s; check the user name, the password and the client certificate", what, text)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func isOurs(err error) bool {
	return errors.Is(err, lease.ErrExists) || errors.Is(err, lease.ErrConflict) ||
		errors.Is(err, lease.ErrNoConfig) || errors.Is(err, lease.ErrUnavailable)
}

func meaning(err error) (codes.Code, string) {
	if known, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return known.Code(), known.Error()
	}
	s := status.Convert(err)
	return s.Code(), s.Message()
}

// reason takes the operating system's words out of gRPC's, which nest them as
// connection error: desc = "transport: Error while dialing: dial tcp …".
func reason(text string) string {
	for _, lead := range []string{"Error while dialing: ", "transport: "} {
		if _, after, ok := strings.Cut(text, lead); ok {
			text = after
		}
	}
	return strings.TrimRight(text, `"`)
}
