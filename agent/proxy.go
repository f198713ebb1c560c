package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/trust"
)

// maxRequestBytes bounds a request on a socket; the API's are below a kilobyte.
const maxRequestBytes = 1 << 20

// localUser is the header in which the coordinators are told which local user
// makes a request: they believe it of agents.
const localUser = "Pagurus-Local-User"

// serveSockets passes the coordinators' HTTP API on to local users. Who may
// open a socket acts in this host's name: the coordinators see the agent's
// certificate, and take a request that names no host to mean this one.
func (a *Agent) serveSockets() error {
	transport := &http.Transport{
		TLSClientConfig:     a.config.Credentials.Client(trust.AllowRoles(trust.RoleCoordinator)),
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSHandshakeTimeout: 2 * time.Second,
		IdleConnTimeout:     time.Minute,
	}
	a.closeLast("proxy", func() error { transport.CloseIdleConnections(); return nil })
	proxy := &httputil.ReverseProxy{
		Transport:     &relay{coordinators: a.coordinators, transport: transport},
		FlushInterval: -1, // events are to be seen when they happen
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "https" // and relay chooses the host
			r.Out.Header.Del(localUser)
			if uid, ok := r.In.Context().Value(uidKey{}).(uint32); ok {
				r.Out.Header.Set(localUser, strconv.FormatUint(uint64(uid), 10))
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				a.logger.Warn("passing a request on", keyError, err)
			}
			writeUnavailable(w, err)
		},
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
	}
	server := &http.Server{
		Handler:           http.MaxBytesHandler(proxy, maxRequestBytes),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return a.stopping },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peerUID(c)
			if err != nil {
				a.logger.Warn("asking who is at the socket", keyError, err)
				return ctx
			}
			return context.WithValue(ctx, uidKey{}, uid)
		},
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
	}
	a.closeLast("sockets", server.Close)
	for _, path := range a.config.Sockets {
		l, err := listenUnix(path)
		if err != nil {
			return err
		}
		a.running.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				a.logger.Error("serving a socket", "path", path, keyError, err)
			}
		})
	}
	return nil
}

type uidKey struct{}

// listenUnix makes a socket that only its owner may open. One that is there
// was left by an agent that was killed: the journal's lock has shown that no
// other one runs.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making a socket's directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replacing the socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on the socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("closing the socket to others: %w", err), l.Close())
	}
	return l, nil
}

// writeUnavailable answers in the coordinators' own words that none of them
// does, so that clients try again.
func writeUnavailable(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client is gone if this fails
		"status": http.StatusServiceUnavailable, "title": http.StatusText(http.StatusServiceUnavailable),
		"code": "no-leader", "detail": "this host's agent reaches no coordinator: " + err.Error(),
	})
}

// relay sends a request to one coordinator after the other until one can be
// reached. What one of them may have begun to do is not sent to another.
type relay struct {
	coordinators *coordinators
	transport    *http.Transport
}

var _ http.RoundTripper = (*relay)(nil)

func (r *relay) RoundTrip(req *http.Request) (*http.Response, error) {
	var content []byte
	if req.Body != nil {
		var err error
		content, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	err := errNoCoordinator
	for _, m := range r.coordinators.known() {
		if m.Meta.HTTP == "" {
			continue
		}
		var resp *http.Response
		if resp, err = r.send(req, m, content); err == nil {
			return resp, nil
		}
		var dialing *net.OpError
		if req.Context().Err() != nil || !errors.As(err, &dialing) || dialing.Op != "dial" {
			return nil, err
		}
	}
	return nil, err
}

func (r *relay) send(req *http.Request, m member.Member, content []byte) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Host, out.Host = m.Meta.HTTP, m.Meta.HTTP
	if req.Body != nil {
		out.Body = io.NopCloser(bytes.NewReader(content))
		out.ContentLength = int64(len(content))
	}
	return r.transport.RoundTrip(out)
}
