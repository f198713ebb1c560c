package agent

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/trust"
)

const (
	// minTokenBytes is the shortest token that nobody guesses.
	minTokenBytes = 16
	// maxGreetings bounds the connections that have not said yet what they are
	// about; more wait for the kernel to hand them over.
	maxGreetings = 64
)

// pageTLS is the configuration of page connections: of long records from the
// start, since nobody waits for the first bytes of a page.
func pageTLS(c *tls.Config) *tls.Config {
	c.DynamicRecordSizingDisabled = true
	return c
}

// servePages takes page connections.
func (a *Agent) servePages(l net.Listener) {
	config := pageTLS(a.config.Credentials.Server(trust.AllowRoles(trust.RoleAgent)))
	slots := make(chan struct{}, maxGreetings)
	a.running.Go(func() {
		for n := 0; ; {
			select {
			case slots <- struct{}{}:
			case <-a.alive.Done():
				return
			}
			conn, err := l.Accept()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil: // out of descriptors, most likely: others will be closed
				a.logger.Error("accepting a page connection", keyError, err)
				<-slots
				n++
				select {
				case <-time.After(a.timing.pause(n)):
				case <-a.alive.Done():
					return
				}
				continue
			}
			n = 0
			a.running.Go(func() {
				defer func() { <-slots }()
				if err := a.greet(tls.Server(conn, config)); err != nil {
					a.logger.Warn("refusing a page connection", keyAddress, conn.RemoteAddr().String(), keyError, err)
					conn.Close()
				}
			})
		}
	})
}

var errNoReservation = errors.New("there is no reservation with this migration, epoch and token")

// greet reads what a connection is about and hands it to its session.
func (a *Agent) greet(conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(a.alive, a.timing.Greeting)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	if err := limitSilence(conn.NetConn()); err != nil {
		return err
	}
	// Closing ends what reads from it; the deadline is for the silent ones.
	unhook := context.AfterFunc(a.alive, func() { conn.NetConn().Close() })
	defer unhook()
	if err := conn.SetDeadline(time.Now().Add(a.timing.Greeting)); err != nil {
		return err
	}
	hello, err := wire.ReadHello(conn)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	peer, err := trust.Peer(conn.ConnectionState())
	if err != nil {
		return err
	}
	a.mu.Lock()
	s := a.known[hello.Migration]
	a.mu.Unlock()
	if s == nil {
		return errNoReservation
	}
	return s.accept(conn, hello, peer.Name)
}

// accept takes the one connection of a reservation.
func (s *session) accept(conn net.Conn, hello wire.Hello, peer string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &s.entry
	// A session that was recovered has no token any more.
	right := len(s.token) > 0 && subtle.ConstantTimeCompare(s.token, hello.Token) == 1
	if e.Side != migrate.SideTarget || e.Epoch != hello.Epoch || !right {
		return errNoReservation
	}
	if e.Peer != peer {
		return fmt.Errorf("the reservation is for %s, not for %s", e.Peer, peer)
	}
	if s.connected || e.Phase != phaseReserved {
		return errors.New("the reservation had its connection already")
	}
	s.connected = true
	s.connections <- pageConn{conn}
	return nil
}
