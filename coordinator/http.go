package coordinator

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/danielgtaylor/huma/v2/validation"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/trust"
)

// serveHTTP answers operators, viewers, agents' sockets and other coordinators,
// by TLS and, if there is to be one, by the unix socket.
func (s *Server) serveHTTP(l net.Listener) error {
	s.http = &http.Server{
		Handler:           s.authenticate(s.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		// What is under way ends with the server, streams above all.
		BaseContext: func(net.Listener) context.Context { return s.stopping },
		ErrorLog:    slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	s.closeLast("HTTP", s.http.Close)
	listeners := []net.Listener{tls.NewListener(l, s.config.Credentials.Server(
		trust.AllowRoles(trust.RoleOperator, trust.RoleViewer, trust.RoleAgent, trust.RoleCoordinator)))}
	if s.config.HTTPSocket != "" {
		socket, err := listenUnix(s.config.HTTPSocket)
		if err != nil {
			return err
		}
		listeners = append(listeners, socket)
	}
	for _, l := range listeners {
		s.running.Go(func() {
			if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.fail(fmt.Errorf("serving HTTP: %w", err))
			}
		})
	}
	return nil
}

// listenUnix makes a socket that only its owner may open. One that is left
// from a coordinator that was killed is in the way and nobody's any more: the
// data directory's lock has shown that no other one runs.
func listenUnix(path string) (net.Listener, error) {
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

// routes are what can be asked: of this server itself, and of the leader.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("Pagurus coordinator", s.config.Version)
	config.Info.Description = "Live migration of running processes between hosts. Errors are problem+json with a stable code."
	config.DocsPath = ""     // would load scripts from the internet
	config.CreateHooks = nil // would add $schema to every document
	config.RejectUnknownQueryParameters = true
	here := humago.New(mux, config)
	s.registerStatus(here)

	leader := http.NewServeMux()
	there := leaderAPI{here, config, humago.NewAdapter(leader, "")}
	s.registerMigrations(there)
	s.registerHosts(there)
	s.registerAddresses(there)
	leader.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusNotFound, api.CodeNotFound, fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path))
	})
	mux.Handle("/", s.atLeader(leader))
	return mux
}

// leaderAPI has the same description as the API that it is part of, and its
// own way to the handlers.
type leaderAPI struct {
	huma.API
	config  huma.Config
	adapter huma.Adapter
}

func (l leaderAPI) Adapter() huma.Adapter { return l.adapter }

// Config is what huma asks its own kind of API for, beside the interface.
func (l leaderAPI) Config() huma.Config { return l.config }

type (
	identityKey struct{}
	uidKey      struct{} // of an agent's local user, if it says so
)

// identityOf is who makes a request.
func identityOf(ctx context.Context) trust.Identity {
	id, _ := ctx.Value(identityKey{}).(trust.Identity)
	return id
}

// who is the requester as reasons name it.
func who(ctx context.Context) string {
	id := identityOf(ctx)
	if id.Role == trust.RoleOperator {
		return id.Name
	}
	if uid, ok := ctx.Value(uidKey{}).(uint64); ok {
		return fmt.Sprintf("uid %d on %s", uid, id.Name)
	}
	return fmt.Sprintf("%s %s", id.Role, id.Name)
}

// authenticate finds out who makes a request and whether they may.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := requester(r)
		if err != nil {
			writeProblem(w, http.StatusForbidden, api.CodeForbidden, err.Error())
			return
		}
		if id.Role == trust.RoleViewer && r.Method != http.MethodGet {
			writeProblem(w, http.StatusForbidden, api.CodeForbidden, "a viewer changes nothing: use an operator's certificate")
			return
		}
		ctx := context.WithValue(r.Context(), identityKey{}, id)
		if uid, err := strconv.ParseUint(r.Header.Get(localUser), 10, 32); err == nil && id.Role == trust.RoleAgent {
			ctx = context.WithValue(ctx, uidKey{}, uid)
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// requester is who a request's certificate, or the right to open the socket,
// shows; or who a coordinator that passes it on says.
func requester(r *http.Request) (trust.Identity, error) {
	if r.TLS == nil {
		return trust.Identity{Role: trust.RoleOperator, Name: "local"}, nil
	}
	id, err := trust.Peer(*r.TLS)
	if err != nil {
		return id, err
	}
	behalf := r.Header.Get(onBehalfOf)
	if behalf == "" {
		return id, nil
	}
	if id.Role != trust.RoleCoordinator {
		return id, fmt.Errorf("%s cannot make requests on behalf of others", id)
	}
	if id, err = trust.ParseIdentity(behalf); err != nil {
		return id, fmt.Errorf("header %s: %w", onBehalfOf, err)
	}
	return id, nil
}

// writeProblem answers with an error outside of huma's handlers.
func writeProblem(w http.ResponseWriter, status int, code, detail string) {
	problem := newProblem(status, code, detail)
	w.Header().Set("Content-Type", problem.ContentType(""))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem) // the client is gone then
}

func newProblem(status int, code, detail string) *api.Error {
	return &api.Error{Status: status, Title: http.StatusText(status), Code: code, Detail: detail}
}

// init lets the errors that huma itself finds, in requests that do not fit
// their description, look like all others. It offers no other place for it.
func init() {
	// All bounds are whole numbers, which %v writes as 4.194304e+06.
	validation.MsgExpectedMaximumNumber = "expected number <= %.f"
	huma.NewError = func(status int, detail string, errs ...error) huma.StatusError {
		problem := newProblem(status, codeOf(status), detail)
		for _, err := range errs {
			if detail, ok := errors.AsType[*huma.ErrorDetail](err); ok {
				problem.Errors = append(problem.Errors, finding(detail))
			} else if err != nil {
				problem.Errors = append(problem.Errors, err.Error())
			}
		}
		return problem
	}
}

// finding says what is wrong with one value, as "pid 0: expected number >= 1".
func finding(d *huma.ErrorDetail) string {
	name := strings.TrimPrefix(strings.TrimPrefix(d.Location, "body"), ".")
	switch value := d.Value.(type) {
	case string, bool:
		name = fmt.Sprintf("%s %v", name, value)
	case float64: // every number of a JSON document
		name += " " + strconv.FormatFloat(value, 'f', -1, 64)
	}
	if name == "" {
		return d.Message
	}
	return name + ": " + d.Message
}

func codeOf(status int) string {
	switch {
	case status == http.StatusNotFound:
		return api.CodeNotFound
	case status >= 400 && status < 500:
		return api.CodeInvalid
	}
	return api.CodeInternal
}
