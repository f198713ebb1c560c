package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// A document is an answer with a body.
type document[T any] struct{ Body T }

func answer[T any](body T, err error) (*document[T], error) {
	if err != nil {
		return nil, problemOf(err)
	}
	return &document[T]{body}, nil
}

// problemOf says in HTTP what went wrong. What has no words of its own is a
// leader that was lost on the way, which is worth another try.
func problemOf(err error) error {
	if problem, ok := errors.AsType[*api.Error](err); ok {
		return problem
	}
	if problem := problemOfAddress(err); problem != nil {
		return problem
	}
	switch {
	case errors.Is(err, scheduler.ErrNoSuchMigration), errors.Is(err, scheduler.ErrNoSuchHost):
		return newProblem(http.StatusNotFound, api.CodeNotFound, err.Error())
	case errors.Is(err, scheduler.ErrTooLate):
		return newProblem(http.StatusConflict, api.CodeTooLate, err.Error())
	case errors.Is(err, scheduler.ErrKeyReused):
		return newProblem(http.StatusConflict, api.CodeKeyReused, err.Error())
	case errors.Is(err, migrate.ErrOutOfPlace):
		return newProblem(http.StatusInternalServerError, api.CodeInternal, err.Error())
	}
	return newProblem(http.StatusServiceUnavailable, api.CodeNoLeader, err.Error())
}

func invalid(err error) error {
	return newProblem(http.StatusUnprocessableEntity, api.CodeInvalid, err.Error())
}

// one names a migration in a path.
type one struct {
	ID string `path:"id" maxLength:"64" doc:"of the migration"`
}

func (s *Server) registerMigrations(a huma.API) {
	huma.Register(a, huma.Operation{
		OperationID: "move", Method: http.MethodPost, Path: "/v1/migrations", Summary: "Move a process",
		Description: "Answers as soon as the migration is written down. One that is refused has an ID and a report too.",
	}, func(ctx context.Context, in *struct {
		Key  string `header:"Idempotency-Key" maxLength:"200" doc:"requests with the same key are the same request"`
		Body api.MoveRequest
	},
	) (*document[migrate.Report], error) {
		from, err := source(ctx, in.Body.From)
		if err != nil {
			return nil, err
		}
		move := scheduler.Move{PID: in.Body.PID, From: from, To: in.Body.To, Options: in.Body.Options, Key: in.Body.Key}
		if move.Key == "" {
			move.Key = in.Key
		} else if in.Key != "" && in.Key != move.Key {
			return nil, invalid(errors.New("the header and the body have different idempotency keys"))
		}
		if err := move.Options.Validate(); err != nil {
			return nil, invalid(err)
		}
		return answer(s.scheduler.Create(ctx, move))
	})

	huma.Register(a, huma.Operation{
		OperationID: "migrations", Method: http.MethodGet, Path: "/v1/migrations", Summary: "All migrations, oldest first",
	}, func(_ context.Context, in *struct {
		State string `query:"state" doc:"only those in this state"`
	},
	) (*document[api.Migrations], error) {
		state := migrate.State(in.State)
		if state != "" && !state.Valid() {
			return nil, invalid(fmt.Errorf("%q is not a state of a migration", in.State))
		}
		list := api.Migrations{Migrations: []migrate.Report{}}
		for _, r := range s.scheduler.Migrations() {
			if state == "" || r.State == state {
				r.PassedOn = s.guests.PassedOn(r.ID)
				list.Migrations = append(list.Migrations, r)
			}
		}
		return answer(list, nil)
	})

	huma.Register(a, huma.Operation{
		OperationID: "migration", Method: http.MethodGet, Path: "/v1/migrations/{id}", Summary: "One migration",
	}, func(_ context.Context, in *one) (*document[migrate.Report], error) {
		return answer(s.migration(in.ID))
	})

	huma.Register(a, huma.Operation{
		OperationID: "cancel", Method: http.MethodPost, Path: "/v1/migrations/{id}/cancel", Summary: "Cancel a migration",
		Description: "The process goes on at the source. Once there is a decision the answer is 409 too-late.",
	}, func(ctx context.Context, in *one) (*document[migrate.Report], error) {
		return answer(s.scheduler.Cancel(ctx, in.ID, who(ctx)))
	})

	huma.Register(a, huma.Operation{
		OperationID: "fence", Method: http.MethodPost, Path: "/v1/migrations/{id}/fence",
		Summary: "Vouch that a lost destination cannot run the process",
		Description: "For a migration in COMMITTED whose destination is lost, for instance because the host is off: " +
			"the source runs the process again. If the destination does run it, there are two of it after that.",
	}, func(ctx context.Context, in *one) (*document[migrate.Report], error) {
		if identityOf(ctx).Role != trust.RoleOperator {
			return nil, newProblem(http.StatusForbidden, api.CodeForbidden, "only an operator vouches for a host: use an operator's certificate")
		}
		return answer(s.scheduler.Fence(ctx, in.ID, who(ctx)))
	})

	huma.Register(a, huma.Operation{
		OperationID: "watch", Method: http.MethodGet, Path: "/v1/migrations/{id}/watch", Summary: "Follow a migration",
		Description: "Server-sent events, each with the report as data: at once, after each change, and at the end the settled one.",
		Responses: map[string]*huma.Response{"200": {
			Description: "a report an event",
			Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
		}},
	}, func(_ context.Context, in *one) (*huma.StreamResponse, error) {
		if _, err := s.migration(in.ID); err != nil {
			return nil, problemOf(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "text/event-stream")
			c.SetHeader("Cache-Control", "no-store")
			s.stream(c.Context(), in.ID, c.BodyWriter().(http.ResponseWriter))
		}}, nil
	})

	huma.Register(a, huma.Operation{
		OperationID: "check", Method: http.MethodPost, Path: "/v1/check", Summary: "Whether a process could move",
		Description: "Looks at both hosts and leaves nothing behind.",
	}, func(ctx context.Context, in *struct{ Body api.CheckRequest }) (*document[migrate.Check], error) {
		from, err := source(ctx, in.Body.From)
		if err != nil {
			return nil, err
		}
		if err := in.Body.Options.Validate(); err != nil {
			return nil, invalid(err)
		}
		return answer(s.scheduler.Check(ctx, in.Body.PID, from, in.Body.To, in.Body.Options.WithDefaults()))
	})
}

// source is the host that a process is on: where it is not named, the host of
// the agent that the request came by.
func source(ctx context.Context, from string) (string, error) {
	if from != "" {
		return from, nil
	}
	if id := identityOf(ctx); id.Role == trust.RoleAgent {
		return id.Name, nil
	}
	return "", invalid(errors.New("from is missing: name the host that the process is on"))
}

func (s *Server) migration(id string) (migrate.Report, error) {
	r, ok := s.scheduler.Migration(id)
	if !ok {
		return r, fmt.Errorf("%w: %s", scheduler.ErrNoSuchMigration, id)
	}
	r.PassedOn = s.guests.PassedOn(id)
	return r, nil
}

const (
	// streamInterval keeps the events of a busy migration to ten a second.
	streamInterval = 100 * time.Millisecond
	// A client that does not read for so long is gone.
	writeTimeout = 10 * time.Second
)

// stream writes a migration's report whenever it has changed, until it is
// settled, the client goes, or this server no longer leads: the client then
// asks the next leader.
func (s *Server) stream(ctx context.Context, id string, w http.ResponseWriter) {
	leading, err := s.scheduler.Leading()
	if err != nil {
		return
	}
	wake, stop := s.scheduler.Watch(id)
	defer stop()
	keepAlive := time.NewTicker(api.KeepAlive)
	defer keepAlive.Stop()
	control := http.NewResponseController(w)
	send := func(format string, args ...any) bool {
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && control.Flush() == nil
	}
	var last []byte
	for {
		r, ok := s.scheduler.Migration(id)
		if !ok {
			return
		}
		data, err := json.Marshal(r)
		if err != nil {
			return
		}
		if !bytes.Equal(data, last) && !send("data: %s\n\n", data) || r.Settled {
			return
		}
		last = data
		// What changes in the next moment goes out together.
		if !await(ctx, nil, streamInterval) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-leading.Done():
			return
		case <-wake:
		case <-keepAlive.C:
			if !send(": still there\n\n") {
				return
			}
		}
	}
}
