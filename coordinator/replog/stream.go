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

	mu    sync.Mutex
	conns map[*streamConn]struct{} // all that are open; nil after Close
}

// A streamConn is closed with its stream. raft itself would leave connections
// open that a peer has made, and those that it has made and keeps for later.
type streamConn struct {
	net.Conn
	stream *stream
}

func (c *streamConn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}

// keep makes a connection one of the stream's.
func (s *stream) keep(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	c := &streamConn{conn, s}
	s.conns[c] = struct{}{}
	return c, nil
}

func (s *stream) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Conn.Close()
	}
	s.conns = nil
}

var _ raft.StreamLayer = (*stream)(nil)

func newStream(l net.Listener, c *trust.Credentials) *stream {
	allow := trust.AllowRoles(trust.RoleCoordinator)
	s := &stream{listener: l, server: c.Server(allow), client: c.Client(allow), ready: make(chan net.Conn), conns: map[*streamConn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.close = sync.OnceValue(func() error {
		s.cancel()
		err := s.listener.Close()
		s.closeConns()
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
		return s.keep(conn)
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close may be called twice: by raft's transport and by whoever made s.
func (s *stream) Close() error { return s.close() }

func (s *stream) Addr() net.Addr { return s.listener.Addr() }

func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(address), s.client)
	if err != nil {
		return nil, err
	}
	return s.keep(conn)
}
