package coordinator

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/trust"
)

// leaderPatience is how long a request waits for somebody to lead. It outlasts
// an election.
const leaderPatience = 5 * time.Second

// onBehalfOf is the header in which a coordinator that passes a request on says
// who made it. Nobody else may set it.
const onBehalfOf = "Pagurus-On-Behalf-Of"

// localUser is the header in which an agent that passes a request on says which
// user of its host made it. It is believed of agents alone.
const localUser = "Pagurus-Local-User"

// atLeader serves a request where this server leads, and passes it on where
// another one does.
func (s *Server) atLeader(next http.Handler) http.Handler {
	proxy := s.proxy()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), leaderPatience)
		defer cancel()
		leading, leader, err := s.awaitLeader(ctx)
		switch {
		case err != nil:
			writeProblem(w, http.StatusServiceUnavailable, api.CodeNoLeader, "no coordinator leads at present")
		case leading != nil:
			next.ServeHTTP(w, r)
		case r.Header.Get(onBehalfOf) != "":
			// Passed on already, by a server that knew less than this one.
			writeProblem(w, http.StatusServiceUnavailable, api.CodeNoLeader, leader+" leads by now")
		default:
			ctx, stop := s.whileLeads(r.Context(), leader)
			defer stop()
			proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, leaderKey{}, leader)))
		}
	})
}

type leaderKey struct{}

// awaitLeader returns the context of this server's leading, or else the name
// of the server that leads, as soon as there is one.
func (s *Server) awaitLeader(ctx context.Context) (leading context.Context, leader string, err error) {
	for {
		turn := s.scheduler.Turn()
		if leading, err := s.scheduler.Leading(); err == nil {
			return leading, "", nil
		}
		leader, changed := s.log.Leader()
		if leader != "" && leader != s.config.Name {
			return nil, leader, nil
		}
		select {
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-turn:
		case <-changed:
		}
	}
}

// whileLeads returns a context that ends with ctx, or when as far as this
// server knows another one leads: whoever waits for a host that was lost, or
// has lost its network, would wait for long. stop has to be called.
func (s *Server) whileLeads(ctx context.Context, leader string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(func() {
		defer cancel()
		for {
			now, changed := s.log.Leader()
			if now != "" && now != leader {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	})
	return ctx, func() { cancel(); looking.Wait() }
}

// proxy passes requests on to the leader that their context names.
func (s *Server) proxy() http.Handler {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: leaderPatience}).DialContext,
		TLSClientConfig:     s.config.Credentials.Client(trust.AllowRoles(trust.RoleCoordinator)),
		TLSHandshakeTimeout: leaderPatience,
		IdleConnTimeout:     time.Minute,
	}
	s.closeLast("proxy", func() error { transport.CloseIdleConnections(); return nil })
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			leader := r.In.Context().Value(leaderKey{}).(string)
			// A leader that gossip does not know has an empty address, which
			// fails as one that cannot be reached.
			m, _ := s.group.Member(trust.RoleCoordinator, leader)
			r.SetURL(&url.URL{Scheme: "https", Host: m.Meta.HTTP})
			r.Out.Header.Set(onBehalfOf, identityOf(r.In.Context()).String())
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.logger.Warn("passing a request on to the leader", logline.KeyError, err)
			writeProblem(w, http.StatusServiceUnavailable, api.CodeNoLeader, fmt.Sprintf("the leader was lost: %v", err))
		},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
	}
}
