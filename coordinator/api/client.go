package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
)

// Config says how to reach the coordinators: by TLS at any of some addresses,
// or by a unix socket.
type Config struct {
	Servers []string // host:port
	TLS     *tls.Config
	Socket  string
	// Patience is how long a request is repeated that no server answers.
	// Zero means DefaultPatience.
	Patience time.Duration
}

// DefaultPatience outlasts the election of a new leader.
const DefaultPatience = 15 * time.Second

const (
	retryMin = 50 * time.Millisecond
	retryMax = time.Second

	// An answer that is longer is not from a coordinator.
	maxAnswerBytes = 64 << 20
)

// ErrNoAnswer says that no coordinator answered.
var ErrNoAnswer = errors.New("no coordinator answers")

// A Client asks the coordinators. It may be used by many goroutines.
type Client struct {
	http     *http.Client
	bases    []string // of URLs
	patience time.Duration
}

// NewClient makes a client; nothing is connected yet.
func NewClient(c Config) (*Client, error) {
	transport := &http.Transport{
		TLSClientConfig:     c.TLS,
		TLSHandshakeTimeout: 5 * time.Second,
		IdleConnTimeout:     time.Minute,
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	client := &Client{http: &http.Client{Transport: transport}, patience: c.Patience}
	if client.patience == 0 {
		client.patience = DefaultPatience
	}
	switch {
	case c.Socket != "" && len(c.Servers) == 0:
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", c.Socket)
		}
		client.bases = []string{"http://coordinator"}
	case c.Socket == "" && len(c.Servers) > 0 && c.TLS != nil:
		transport.DialContext = dialer.DialContext
		for _, server := range c.Servers {
			if _, _, err := net.SplitHostPort(server); err != nil {
				return nil, fmt.Errorf("address of a coordinator: %w", err)
			}
			client.bases = append(client.bases, "https://"+server)
		}
	default:
		return nil, errors.New("either a socket, or servers with TLS, are needed to reach a coordinator")
	}
	return client, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Move asks for a migration and returns it as soon as it is written down; it
// may be refused already.
func (c *Client) Move(ctx context.Context, req MoveRequest) (migrate.Report, error) {
	if req.Key == "" {
		req.Key = rand.Text() // so that repeating it is safe
	}
	return do[migrate.Report](ctx, c, http.MethodPost, "/v1/migrations", req)
}

// Migrations lists migrations, of one state or, if that is empty, all.
func (c *Client) Migrations(ctx context.Context, state migrate.State) ([]migrate.Report, error) {
	path := "/v1/migrations"
	if state != "" {
		path += "?state=" + url.QueryEscape(string(state))
	}
	list, err := do[Migrations](ctx, c, http.MethodGet, path, nil)
	return list.Migrations, err
}

// Migration returns one migration.
func (c *Client) Migration(ctx context.Context, id string) (migrate.Report, error) {
	return do[migrate.Report](ctx, c, http.MethodGet, "/v1/migrations/"+url.PathEscape(id), nil)
}

// Cancel aborts a migration that has no decision yet; see CodeTooLate.
func (c *Client) Cancel(ctx context.Context, id string) (migrate.Report, error) {
	return do[migrate.Report](ctx, c, http.MethodPost, "/v1/migrations/"+url.PathEscape(id)+"/cancel", nil)
}

// Fence vouches that the destination of a committed migration cannot run the
// process any more, so that the source may.
func (c *Client) Fence(ctx context.Context, id string) (migrate.Report, error) {
	return do[migrate.Report](ctx, c, http.MethodPost, "/v1/migrations/"+url.PathEscape(id)+"/fence", nil)
}

// Check asks whether a process could move.
func (c *Client) Check(ctx context.Context, req CheckRequest) (migrate.Check, error) {
	return do[migrate.Check](ctx, c, http.MethodPost, "/v1/check", req)
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]migrate.Host, error) {
	list, err := do[Hosts](ctx, c, http.MethodGet, "/v1/hosts", nil)
	return list.Hosts, err
}

// Addresses lists the service addresses.
func (c *Client) Addresses(ctx context.Context) ([]migrate.Address, error) {
	list, err := do[Addresses](ctx, c, http.MethodGet, "/v1/addresses", nil)
	return list.Addresses, err
}

// AddAddress gives a host a service address; see CodeAddressTaken, CodeAddressUnfit
// and CodeAddressPending.
func (c *Client) AddAddress(ctx context.Context, req AddressRequest) (migrate.Address, error) {
	return do[migrate.Address](ctx, c, http.MethodPost, "/v1/addresses", req)
}

// RemoveAddress takes a service address away. If it is leaving then, its host has
// not answered, or could not do it, and will be told again.
func (c *Client) RemoveAddress(ctx context.Context, address string) (migrate.Address, error) {
	return do[migrate.Address](ctx, c, http.MethodDelete, "/v1/addresses/"+url.PathEscape(address), nil)
}

// Processes lists the processes of one host or, if that is empty, of all.
func (c *Client) Processes(ctx context.Context, host string) (Processes, error) {
	path := "/v1/processes"
	if host != "" {
		path += "?host=" + url.QueryEscape(host)
	}
	return do[Processes](ctx, c, http.MethodGet, path, nil)
}

// Status returns the view of whichever server answers.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return do[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// do sends a request until it is answered, to one server after the other.
func do[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	var content []byte
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return answer, err
		}
	}
	err = c.patiently(ctx, func(base string) error {
		resp, err := c.send(ctx, method, base+path, content)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes)).Decode(&answer); err != nil {
			return again{fmt.Errorf("reading the coordinator's answer: %w", err)}
		}
		return nil
	})
	return answer, err
}

// again is an error after which the request may be repeated.
type again struct{ error }

func (a again) Unwrap() error { return a.error }

// patiently calls try with one server after the other until it succeeds, fails
// for good, or has failed for too long.
func (c *Client) patiently(ctx context.Context, try func(base string) error) error {
	deadline := time.Now().Add(c.patience)
	pause := retryMin
	for n := 0; ; n++ {
		err := try(c.bases[n%len(c.bases)])
		var retry again
		if !errors.As(err, &retry) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Another server is asked at once, all of them only after a pause.
		if (n+1)%len(c.bases) != 0 {
			continue
		}
		if time.Now().Add(pause).After(deadline) {
			return fmt.Errorf("%w: %w", ErrNoAnswer, retry.error)
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
		pause = min(2*pause, retryMax)
	}
}

// sleep waits, and reports whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// send makes one attempt. An answer that is an error becomes one.
func (c *Client) send(ctx context.Context, method, url string, content []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, again{err}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	problem := &Error{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes)).Decode(problem); err != nil || problem.Code == "" {
		problem = &Error{Status: resp.StatusCode, Code: CodeInternal, Detail: "the coordinator answered " + resp.Status}
	}
	if problem.Code == CodeNoLeader {
		return nil, again{problem}
	}
	return nil, problem
}
