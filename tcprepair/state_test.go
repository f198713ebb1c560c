package tcprepair

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// deaf makes an end lose every segment that comes to it, until the function
// that it returns is called.
func (e end) deaf() (hear func()) {
	e.t.Helper()
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	err := unix.SetsockoptSockFprog(e.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
	if err != nil {
		e.t.Fatal(err)
	}
	return func() {
		e.t.Helper()
		if err := unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
			e.t.Fatal(err)
		}
	}
}

func (e end) state() State {
	e.t.Helper()
	info, err := unix.GetsockoptTCPInfo(e.fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		e.t.Fatal(err)
	}
	return State(info.State)
}

func (e end) awaitState(want State) {
	e.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); e.state() != want; {
		if time.Now().After(deadline) {
			e.t.Fatalf("%v instead of %v", e.state(), want)
		}
	}
}

// take dumps a socket and puts it together again from what it would be on
// another host. If the peer may send meanwhile, it has to be deaf: it would be
// told that there is no such connection. Early, that is in two steps.
func (e end) take(early bool) (*Socket, end) {
	e.t.Helper()
	if e.state().Connected() {
		e.deaf()
	}
	dumped, err := Dump(e.fd)
	if err != nil {
		e.t.Fatalf("dump: %v", err)
	}
	sent, err := json.Marshal(dumped)
	if err != nil {
		e.t.Fatal(err)
	}
	var s Socket
	if err := json.Unmarshal(sent, &s); err != nil {
		e.t.Fatal(err)
	}
	s.Filter = nil // what made it deaf
	if err := Discard(e.fd); err != nil {
		e.t.Fatal(err)
	}
	fd, err := must(NewRestorer()).Restore(&s, early)
	if err != nil {
		e.t.Fatalf("restore: %v", err)
	}
	if early && s.Ended { // somebody has begun with it
		to, err := inet.Sockaddr(s.Local, s.IPv6)
		if err == nil {
			err = unix.Connect(fd, to) // in repair mode, which needs nobody there
		}
		if err != nil {
			e.t.Fatalf("connecting half-way: %v", err)
		}
	}
	if early {
		for range 2 { // by somebody who does not know whether it was done
			if err := Arrive(fd, s.Rest()); err != nil {
				e.t.Fatalf("arrive: %v", err)
			}
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		e.t.Fatal(err)
	}
	return &s, end{e.t, fd}
}

func (e end) move() end {
	e.t.Helper()
	s, moved := e.take(e.state().Connected())
	for range 2 {
		if err := Activate(moved.fd, s.Rest()); err != nil {
			e.t.Fatalf("activate: %v", err)
		}
	}
	return moved
}

// A stateCase brings a connection into a state: server is the end that moves.
type stateCase struct {
	state State
	enter func(server, client end) (then func())
	// What either end may still send.
	serverWrites, clientWrites bool
}

func nothing() {}

var stateCases = []stateCase{
	{
		state: Established, serverWrites: true, clientWrites: true,
		enter: func(_, _ end) func() { return nothing },
	},
	{
		state: CloseWait, serverWrites: true,
		enter: func(_, client end) func() { client.shutdown(); return nothing },
	},
	{
		state: FinWait1, clientWrites: true,
		enter: func(server, client end) func() {
			hear := client.deaf()
			server.shutdown()
			return hear
		},
	},
	{
		state: FinWait2, clientWrites: true,
		enter: func(server, _ end) func() { server.shutdown(); return nothing },
	},
	{
		state: Closing,
		enter: func(server, client end) func() {
			hear := client.deaf()
			server.shutdown()
			client.shutdown()
			return hear
		},
	},
	{
		state: LastAck,
		enter: func(server, client end) func() {
			client.shutdown()
			server.awaitState(CloseWait)
			hear := client.deaf()
			server.shutdown()
			return hear
		},
	},
}

func TestStates(t *testing.T) {
	for _, f := range families {
		for _, c := range stateCases {
			for _, data := range []string{"empty queues", "data"} {
				t.Run(f.name+"/"+c.state.String()+"/"+data, func(t *testing.T) {
					testState(t, f, c, data == "data")
				})
			}
		}
	}
}

func testState(t *testing.T, f netFamily, c stateCase, data bool) {
	inettest.EnterNetwork(t)
	server, client := f.connect(t)
	toServer, toClient := "", ""
	if data {
		toServer, toClient = strings.Repeat("from the client ", 1000), strings.Repeat("from the server ", 500)
		client.write(toServer)
		server.write(toClient)
	}
	then := c.enter(server, client)
	server.awaitState(c.state)
	server = server.move()
	then()

	if c.clientWrites {
		client.write("later")
		toServer += "later"
	}
	if c.serverWrites {
		server.write("later")
		toClient += "later"
	}
	if diff := cmp.Diff(toServer, server.read(len(toServer))); diff != "" {
		t.Errorf("what the server reads (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(toClient, client.read(len(toClient))); diff != "" {
		t.Errorf("what the client reads (-want +got):\n%s", diff)
	}
	if c.clientWrites {
		client.shutdown()
	}
	if c.serverWrites {
		server.shutdown()
	}
	server.readEnd()
	client.readEnd()
	for _, e := range []end{server, client} {
		if err, _ := unix.GetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != 0 {
			t.Errorf("an end has the error %v", unix.Errno(err))
		}
		e.close()
	}
}
