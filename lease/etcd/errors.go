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

func (r *Registry) unavailable(reason string) error {
	return &unavailable{r.opts.Endpoints, reason + r.viaProxy()}
}

func (e *unavailable) Unwrap() error { return lease.ErrUnavailable }

// noSpace is the remedy of the alarm NOSPACE, which lets reads pass and no writes.
const noSpace = "etcd's space is exhausted: compact its history, defragment it, then run etcdctl alarm disarm"

// words turns the client's error into one of package lease's, or wraps it with
// what was being done. ctx is the caller's, without the call's own limit.
func (r *Registry) words(ctx context.Context, what string, err error) error {
	err = known(err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case isOurs(err):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: %s", what, lease.ErrReadOnly, noSpace)
	case errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%s: %w", what, lease.ErrCompacted)
	case errors.Is(err, context.DeadlineExceeded):
		return r.unavailable(fmt.Sprintf("no answer within %s", callTimeout))
	case errors.Is(err, rpctypes.ErrGRPCWatchCanceled): // not by us: etcd is about to end
		return r.unavailable(plain(err))
	}
	if remedy := r.remedy(err); remedy != "" {
		return fmt.Errorf("%s: %w: %s: %s", what, ErrAccess, plain(err), remedy)
	}
	_, byEtcd := errors.AsType[rpctypes.EtcdError](err)
	switch code, text := meaning(err); code {
	case codes.Unavailable, codes.DeadlineExceeded:
		if !byEtcd {
			return r.unanswered(ctx, text)
		}
		return r.unavailable(plain(err))
	case codes.Unauthenticated, codes.ResourceExhausted:
		// A member that doesn't know our newest token yet, too many requests.
		return r.unavailable(plain(err))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// remedy says what to do about a refusal that won't pass, "" if err is none.
func (r *Registry) remedy(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "check the user name and the password"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "give a user name and its password, or a client certificate whose common name is the user's"
	case errors.Is(err, rpctypes.ErrPermissionDenied) && r.opts.Username != "":
		return fmt.Sprintf("user %s needs a role that may read and write %s/ and what follows (etcdctl role grant-permission --prefix)", r.opts.Username, r.opts.Prefix)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Sprintf("give a user name and its password, or a client certificate, of a user that may read and write %s/ and what follows", r.opts.Prefix)
	}
	return ""
}

// plain is etcd's text without its name.
func plain(err error) string {
	_, text := meaning(err)
	return strings.TrimPrefix(text, "etcdserver: ")
}

// known restores an error of etcd that has become text, as the reason why a
// watch is refused does.
func known(err error) error {
	if err == nil {
		return nil
	}
	if _, desc, ok := strings.Cut(err.Error(), "desc = "); ok {
		if e, ok := errors.AsType[rpctypes.EtcdError](rpctypes.Error(status.Error(codes.Unknown, desc))); ok {
			return e
		}
	}
	return err
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
	for _, lead := range []string{"Error while dialing: ", "transport: ", "connection error: desc = \""} {
		if _, after, ok := strings.Cut(text, lead); ok {
			text = after
		}
	}
	return strings.TrimRight(text, `"`)
}
