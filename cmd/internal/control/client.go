package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that nobody answers on the control socket.
var ErrNotRunning = errors.New("no uvxland answers")

// Client asks a daemon by its control socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the daemon whose control socket is at path. It
// connects to nothing yet.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// ErrUnknown says that the daemon doesn't know the question: it is an older one.
var ErrUnknown = errors.New("uvxland is older than this command")

// Status asks for the daemon's state. The error is [ErrNotRunning] if there is
// no daemon.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.get(ctx, "/v1/status", &s)
	return s, err
}

// Peers asks for the peers. The error is [ErrNotRunning] if there is no daemon.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var peers []Peer
	err := c.get(ctx, "/v1/peers", &peers)
	return peers, err
}

// Leases asks for the cluster's leases, as the daemon reads them in etcd. The error
// is [ErrNotRunning] if there is no daemon, and [ErrUnknown] if it can't tell.
func (c *Client) Leases(ctx context.Context) ([]LeaseRow, error) {
	var rows []LeaseRow
	err := c.get(ctx, "/v1/leases", &rows)
	return rows, err
}

// ChangeLease has the daemon change a lease, and returns in words what it did. The
// errors are those of Leases.
func (c *Client) ChangeLease(ctx context.Context, change LeaseChange) (words string, err error) {
	body, err := json.Marshal(change)
	if err != nil {
		return "", err
	}
	var d done
	err = c.ask(ctx, http.MethodPost, "/v1/leases", body, &d)
	return d.Done, err
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.ask(ctx, http.MethodGet, path, nil, into)
}

func (c *Client) ask(ctx context.Context, method, path string, body []byte, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://uvxland"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := c.http.Do(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w on %s", ErrNotRunning, c.path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("no access to control socket %s: %w", c.path, fs.ErrPermission)
	}
	if err != nil {
		return fmt.Errorf("ask uvxland: %w", err)
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable: // in the daemon's words
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			return fmt.Errorf("read uvxland's answer: %w", err)
		}
		return errors.New(string(text))
	case http.StatusNotFound:
		return fmt.Errorf("ask uvxland for %s: %w", path, ErrUnknown)
	default:
		return fmt.Errorf("ask uvxland for %s: %s", path, answer.Status)
	}
	if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
		return fmt.Errorf("read uvxland's answer: %w", err)
	}
	return nil
}
