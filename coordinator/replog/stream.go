package replog

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pagurus-project/pagurus/trust"
)

// How long a peer may take to prove who it is, and how many may try at once.
const (
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 64
)

// stream is raft's way to its peers: TLS in both directions, coordinators only.
// The handshake is over before raft sees a connection, so that a stranger who
// connects and says nothing holds no goroutine of raft's.
type stream struct {
	listener net.Listener
	server   *tls.Config
	client   *tls.Config

	ready  chan net.Conn
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	close  func() error
}

var _ raft.StreamLayer = (*stream)(nil)

func newStream(l net.Listener, c *trust.Credentials) *stream {
	allow := trust.AllowRoles(trust.RoleCoordinator)
	s := &stream{listener: l, server: c.Server(allow), client: c.Client(allow), ready: make(chan net.Conn)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.close = sync.OnceValue(func() error {
		s.cancel()
		err := s.listener.Close()
		s.wg.Wait()
		return err
	})
	s.wg.Go(s.accept)
	return s
}

func (s *stream) accept() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			// Closed, or without descriptors: raft's loop would do no more
			// than try again, and so does every peer.
			if s.ctx.Err() != nil {
				return
			}
			select {
			case <-s.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slots <- struct{}{}
		s.wg.Go(func() {
			defer func() { <-slots }()
			s.handshake(tls.Server(conn, s.server))
		})
	}
}

func (s *stream) handshake(conn *tls.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	defer cancel()
	if conn.HandshakeContext(ctx) != nil {
		conn.Close()
		return
	}
	select {
	case s.ready <- conn:
	case <-s.ctx.Done():
		conn.Close()
	}
}

// Accept returns the next peer that has proved to be a coordinator.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case conn := <-s.ready:
		return conn, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close may be called twice: by raft's transport and by whoever made s.
func (s *stream) Close() error { return s.close() }

func (s *stream) Addr() net.Addr { return s.listener.Addr() }

func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(address), s.client)
}
