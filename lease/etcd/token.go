package etcd

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// authenticate is the call that turns a password into a token.
const authenticate = "/etcdserverpb.Auth/Authenticate"

// tokens gives each call the token that etcd asks for beside a user name. The
// client's own way sends the old token along when it asks for a new one, which
// etcd 3.4 refuses if the old one has expired: it would never get in again.
type tokens struct {
	name, password string // immutable

	mu    sync.Mutex
	token string // guarded by mu, as is have
	have  bool   // token counts; it is empty if etcd asks for none
}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t *tokens) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, _ := t.current()
	if info, _ := credentials.RequestInfoFromContext(ctx); token == "" || info.Method == authenticate {
		return nil, nil
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: token}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]: etcd
// takes passwords without TLS.
func (t *tokens) RequireTransportSecurity() bool { return false }

// unary gets a token before the first call, and another when etcd doesn't know
// the one it was given any more.
func (t *tokens) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == authenticate {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	if _, have := t.current(); !have {
		if err := t.renew(ctx, cc); err != nil {
			return err
		}
	}
	err := invoke(ctx, method, req, reply, cc, opts...)
	if !stale(err) {
		return err
	}
	if err := t.renew(ctx, cc); err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// stream gets a new token always: the last one may be old, and what etcd says
// of it then looks different from version to version.
func (t *tokens) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := t.renew(ctx, cc); err != nil {
		return nil, err
	}
	return streamer(ctx, desc, cc, method, opts...)
}

// stale tells whether etcd wants another token.
func stale(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision) ||
		errors.Is(err, rpctypes.ErrUserEmpty)
}

func (t *tokens) current() (token string, have bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.token, t.have
}

func (t *tokens) renew(ctx context.Context, cc *grpc.ClientConn) error {
	resp, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: t.name, Password: t.password})
	if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled) {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token, t.have = resp.GetToken(), true
	return nil
}
