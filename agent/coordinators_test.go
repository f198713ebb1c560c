package agent

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/connectivity"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/trust"
)

// TestLostCoordinatorBreaksTheConnection: a connection to a machine that is gone
// without a word breaks within seconds, and not after minutes of TCP's patience.
// To wait for that here would take a machine that can be lost.
func TestLostCoordinatorBreaksTheConnection(t *testing.T) {
	c := newCluster(t)
	c.b.kill() // its connection may be half made
	agent := c.a.agent
	var one member.Member
	for known := false; !known; {
		changed := agent.group.Changed()
		if one, known = agent.group.Member(trust.RoleCoordinator, "one"); !known {
			<-changed
		}
	}
	conn, err := agent.coordinators.connect(one)
	if err != nil {
		t.Fatal(err)
	}
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.WaitForStateChange(t.Context(), state)
	}
	timeouts := timeoutsTo(t, one.Meta.GRPC)
	if len(timeouts) == 0 {
		t.Error("no connection is found")
	}
	for _, ms := range timeouts {
		if ms <= 0 || ms > 30_000 {
			t.Errorf("what is not acknowledged breaks a connection after %d ms (0: TCP's own patience)", ms)
		}
	}
}

// TestNoConnectionAfterTheEnd: who reports while an agent stops opens nothing that nobody
// closes.
func TestNoConnectionAfterTheEnd(t *testing.T) {
	c := newCluster(t)
	agent := c.a.agent
	c.a.kill()
	_, err := agent.coordinators.connect(member.Member{Name: "one", Role: trust.RoleCoordinator, Meta: member.Meta{GRPC: "127.0.0.1:1"}})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("connecting: %v", err)
	}
}

// timeoutsTo are the TCP_USER_TIMEOUTs of this program's connections to an address.
func timeoutsTo(t *testing.T, address string) (all []int) {
	t.Helper()
	want := netip.MustParseAddrPort(address)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(filepath.Base(e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			continue // no connection
		}
		if in4, ok := peer.(*unix.SockaddrInet4); !ok || netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)) != want {
			continue
		}
		if ms, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil {
			all = append(all, ms)
		}
	}
	return all
}

// TestTheLeaderIsAskedFirst: whoever gives the order to start is who has to hear
// of the promise.
func TestTheLeaderIsAskedFirst(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.a.agent.coordinators.prefer("two")
	m.b.agent.coordinators.prefer("two")
	m.reserve()
	m.start()
	for _, h := range []*host{m.a, m.b} {
		h.agent.coordinators.mu.Lock()
		if first := h.agent.coordinators.first; first != "one" {
			t.Errorf("%s prefers %q", h.name, first)
		}
		h.agent.coordinators.mu.Unlock()
	}
}
