package tcprepair

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// other gives an option a value that it does not have yet, and reports whether
// this socket takes one.
// fixed are options that sockets of a kind have and that cannot be changed in
// them, at least not here.
var fixed = map[string][]string{
	"connection": {"IPV6_V6ONLY", "SO_RESERVE_MEM", "TCP_FASTOPEN", "TCP_FASTOPEN_CONNECT", "TCP_FASTOPEN_NO_COOKIE"},
	"listener":   {"IPV6_V6ONLY", "SO_RESERVE_MEM", "TCP_FASTOPEN_CONNECT"},
	"unbound":    {"SO_RESERVE_MEM"},
}

// Every option that a program can set arrives.
func TestOptions(t *testing.T) {
	for name, open := range map[string]func(*testing.T, bool) int{"connection": connection, "listener": listener, "unbound": unbound} {
		for _, ipv6 := range []bool{false, true} {
			family := "IPv4"
			if ipv6 {
				family = "IPv6"
			}
			t.Run(name+"/"+family, func(t *testing.T) {
				inettest.EnterNetwork(t)
				fd := open(t, ipv6)
				for _, o := range must(inet.TCP.Read(fd, ipv6)) {
					k := inet.TCP.Kind(o.Level, o.Name)
					if !must(inettest.Change(k, fd)) && !slices.Contains(fixed[name], k.Label) {
						t.Errorf("%s of %v cannot be changed", k.Label, o.Value)
					}
				}
				// ld #0; ret #-1
				program := inet.Filter{uint64(unix.BPF_LD | unix.BPF_IMM), uint64(unix.BPF_RET|unix.BPF_K) | 0xffffffff<<32}
				if err := program.Attach(fd); err != nil {
					t.Fatal(err)
				}
				before := byLabel(must(inet.TCP.Read(fd, ipv6)))
				s := must(Dump(fd))
				if err := Discard(fd); err != nil {
					t.Fatal(err)
				}
				moved := must(Restore(s, false))
				if err := Activate(moved, s); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, byLabel(must(inet.TCP.Read(moved, ipv6)))); diff != "" {
					t.Errorf("options (-before +after):\n%s", diff)
				}
				if diff := cmp.Diff(program, must(inet.ReadFilter(moved, "it"))); diff != "" {
					t.Errorf("filter (-before +after):\n%s", diff)
				}
				if diff := cmp.Diff(s.Buffers, must(inet.ReadBuffers(moved))); diff != "" {
					t.Errorf("buffers (-before +after):\n%s", diff)
				}
			})
		}
	}
}

func byLabel(all []inet.Option) map[string][]byte {
	m := make(map[string][]byte)
	for _, o := range all {
		m[inet.TCP.Kind(o.Level, o.Name).Label] = o.Value
	}
	return m
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func unbound(_ *testing.T, ipv6 bool) int {
	domain := unix.AF_INET
	if ipv6 {
		domain = unix.AF_INET6
	}
	return must(unix.Socket(domain, unix.SOCK_STREAM, 0))
}

func listener(t *testing.T, ipv6 bool) int {
	fd := unbound(t, ipv6)
	var at unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if ipv6 {
		at = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	}
	if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 17)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func connection(t *testing.T, ipv6 bool) int {
	l := listener(t, ipv6)
	if err := unix.Connect(unbound(t, ipv6), must(unix.Getsockname(l))); err != nil {
		t.Fatal(err)
	}
	fd, _, err := acceptFrom(l)
	return must(fd, err)
}
