package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/migrate/wire"
)

// A RefusedError is the destination's word that it cannot go on.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the destination failed: " + e.Reason }

// replies reads what the destination says, all the time, so that a failure
// there is heard at once.
type replies struct {
	conn net.Conn
	said chan wire.Reply
	done chan struct{}
}

// listen starts reading. A refusal and the end of the connection end the
// context by fail.
func listen(ctx context.Context, conn net.Conn, fail context.CancelCauseFunc) *replies {
	r := &replies{conn: conn, said: make(chan wire.Reply), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for {
			reply, err := wire.ReadReply(conn)
			switch {
			case errors.Is(err, io.EOF):
				fail(errors.New("the destination has closed the connection"))
				return
			case err != nil:
				fail(fmt.Errorf("listening to the destination: %w", err))
				return
			case reply.Kind == wire.Failed:
				fail(&RefusedError{reply.Reason})
				return
			}
			select {
			case r.said <- reply:
			case <-ctx.Done():
				return
			}
		}
	}()
	return r
}

// await waits for a certain reply, or for another one of these kinds.
func (r *replies) await(ctx context.Context, kind wire.ReplyKind, round uint32, or ...wire.ReplyKind) (wire.Reply, error) {
	select {
	case <-ctx.Done():
		return wire.Reply{}, context.Cause(ctx)
	case reply := <-r.said:
		if (reply.Kind != kind || reply.Round != round) && !slices.Contains(or, reply.Kind) {
			return reply, fmt.Errorf("the destination says %q (round %d) instead of %q (round %d)", reply.Kind, reply.Round, kind, round)
		}
		return reply, nil
	}
}

// stop ends the reading. The context must have ended. A connection that takes
// no deadline is closed, which ends the reading too.
func (r *replies) stop() {
	_ = r.conn.SetReadDeadline(time.Unix(1, 0))
	<-r.done
}
