package resource

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// What a glance tells of a connection is what system calls tell of it, whatever option is
// set, also when the options of others like it were looked up before.
func TestGlance(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	descriptors, err := procfs.NewDescriptorReader()
	if err != nil {
		t.Fatal(err)
	}
	defer descriptors.Close()
	layout, err := tcprepair.NewLayout()
	if err != nil {
		t.Fatal(err)
	}
	glance := func(fd int) *tcprepair.Glance {
		var g *tcprepair.Glance
		found := false
		err := descriptors.Each(procfs.Process{PID: os.Getpid()}, func(d *procfs.Descriptor) error {
			if d.FD == fd {
				g, found = layout.Glance(d.TCP, d.UID, d.GID), true
			}
			return nil
		})
		if err != nil || !found {
			t.Fatalf("descriptor %d is found: %t, %v", fd, found, err)
		}
		return g
	}
	for _, test := range []struct {
		name, at, to string
		ipv6         bool
	}{
		{"IPv4", "127.0.0.1:0", "127.0.0.1", false},
		{"IPv6", "[::1]:0", "::1", true},
		{"mapped", "[::]:0", "::ffff:127.0.0.1", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd := accepted(t, test.at, test.to, test.ipv6)
			settings, reads := make(tcprepair.Settings), 0
			duplicate := func() (int, error) {
				reads++
				return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			}
			compare := func(after string) {
				t.Helper()
				var g *tcprepair.Glance
				var want *tcprepair.Socket
				for again := true; again; { // while a packet that comes changes something
					before, _, err := tcprepair.Look(fd)
					if err != nil {
						t.Fatal(err)
					}
					if g = glance(fd); g == nil {
						t.Fatalf("after %s there is nothing to be seen", after)
					}
					if err := settings.Complete(g, duplicate); err != nil {
						t.Fatal(err)
					}
					if want, _, err = tcprepair.Look(fd); err != nil {
						t.Fatal(err)
					}
					again = !cmp.Equal(before, want, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
				}
				diff := cmp.Diff(labelled(want.Options), labelled(slices.Concat(g.Socket.Options, g.Socket.Own)), cmpopts.IgnoreMapEntries(func(label string, _ []byte) bool {
					// The route's, unless it was set: then a new socket has it, too.
					_, told := labelled(g.Socket.Own)[label]
					return label == "IPV6_UNICAST_HOPS" && !told
				}))
				if diff != "" {
					t.Errorf("after %s (-system calls +glance):\n%s", after, diff)
				}
				if diff := cmp.Diff(want, g.Socket, cmpopts.IgnoreFields(tcprepair.Socket{}, "Options", "Own", "Negotiated"), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Errorf("after %s (-system calls +glance):\n%s", after, diff)
				}
			}
			compare("accept")
			if compare("nothing"); reads != 1 {
				t.Errorf("options were read %d times", reads)
			}
			for _, o := range labelledKinds(t, fd, test.ipv6) {
				if o.Label == "SO_BINDTODEVICE" {
					continue // seen below
				}
				for _, value := range inettest.Values(o) {
					if err := inet.Set(fd, o.Level, o.Name, value); err == nil {
						compare(o.Label)
					}
				}
			}
			for _, b := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b, 10000); err != nil {
					t.Fatal(err)
				}
				compare("setting a buffer")
			}
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
			for {
				if s, _, err := tcprepair.Look(fd); err != nil || s.State == tcprepair.FinWait2 {
					break
				}
			}
			compare("shutdown")
			if err := (inet.Filter{uint64(unix.BPF_RET|unix.BPF_K) | 0xffffffff<<32}).Attach(fd); err != nil {
				t.Fatal(err)
			}
			if glance(fd) != nil {
				t.Error("a filter is not to be seen at once")
			}
		})
	}
	t.Run("special", func(t *testing.T) {
		bound := accepted(t, "127.0.0.1:0", "127.0.0.1", false)
		if err := unix.SetsockoptString(bound, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
			t.Fatal(err)
		}
		listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(listener)
		if glance(bound) != nil || glance(listener) != nil {
			t.Error("a connection that is bound to a device, or a socket without one, is to be seen at once")
		}
		if err := unix.Listen(listener, 1); err != nil {
			t.Fatal(err)
		}
		if glance(listener) != nil {
			t.Error("a listener is to be seen at once")
		}
	})
}

// accepted makes a connection and returns its accepted end.
func accepted(t *testing.T, at, to string, ipv6 bool) int {
	t.Helper()
	network := "tcp4"
	if ipv6 {
		network = "tcp"
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(to).Unmap(), uint16(l.Addr().(*net.TCPAddr).Port)).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return int(file.Fd())
}

func labelled(all []inet.Option) map[string][]byte {
	m := make(map[string][]byte)
	for _, o := range all {
		m[inet.TCP.Kind(o.Level, o.Name).Label] = o.Value
	}
	return m
}

func labelledKinds(t *testing.T, fd int, ipv6 bool) []*inet.Kind {
	t.Helper()
	all, err := inet.TCP.Read(fd, ipv6)
	if err != nil {
		t.Fatal(err)
	}
	kinds := make([]*inet.Kind, len(all))
	for i, o := range all {
		kinds[i] = inet.TCP.Kind(o.Level, o.Name)
	}
	return kinds
}
