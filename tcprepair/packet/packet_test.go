package packet

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// enterNetwork gives the test's goroutine a network of its own with a device eth0. The
// thread ends with it.
func enterNetwork(t *testing.T) {
	t.Helper()
	inettest.EnterNetwork(t)
	inettest.AddPair(t, "eth0", "peer0")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func open(t *testing.T, kind int, protocol uint16, device string) int {
	t.Helper()
	fd := must(unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(fd) })
	check(t, (&Socket{Protocol: protocol, Device: device}).bind(fd))
	return fd
}

// again makes the socket anew beside the old one, where devices have other numbers.
func again(t *testing.T, fd int) (*Socket, int) {
	t.Helper()
	s := must(Look(fd))
	if device, err := netlink.LinkByName("eth0"); err == nil {
		check(t, netlink.LinkDel(device))
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "peer1"}))
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}))
		check(t, netlink.LinkSetUp(must(netlink.LinkByName("eth0"))))
	}
	anew := must(Restore(s))
	t.Cleanup(func() { unix.Close(anew) })
	return s, anew
}

func mustLookAlike(t *testing.T, was *Socket, fd int) {
	t.Helper()
	is := must(Look(fd))
	for _, s := range []*Socket{was, is} { // each packet that comes sets it
		s.Options = slices.DeleteFunc(s.Options, func(o inet.Option) bool { return o.Level == unix.SOL_SOCKET && o.Name == unix.SO_INCOMING_CPU })
	}
	if diff := cmp.Diff(was, is, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(inet.Option{})); diff != "" {
		t.Errorf("the socket (-before +after):\n%s", diff)
	}
}

// TestAgain: a socket arrives with its protocol, its device by name, its options, filter
// and memberships.
func TestAgain(t *testing.T) {
	for name, c := range map[string]struct {
		kind     int
		protocol uint16
		device   string
	}{
		"new":              {unix.SOCK_RAW, 0, ""},
		"everything":       {unix.SOCK_RAW, unix.ETH_P_ALL, ""},
		"a device":         {unix.SOCK_RAW, unix.ETH_P_ALL, "eth0"},
		"datagrams":        {unix.SOCK_DGRAM, unix.ETH_P_IP, "eth0"},
		"only for sending": {unix.SOCK_DGRAM, 0, "eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			fd := open(t, c.kind, c.protocol, c.device)
			options := map[int]uint32{
				unix.PACKET_AUXDATA: 1, unix.PACKET_ORIGDEV: 1, unix.PACKET_VERSION: unix.TPACKET_V2, unix.PACKET_RESERVE: 16, unix.PACKET_LOSS: 1,
				unix.PACKET_TIMESTAMP: unix.SOF_TIMESTAMPING_RAW_HARDWARE, unix.PACKET_IGNORE_OUTGOING: 1, unix.PACKET_TX_HAS_OFF: 1,
				unix.PACKET_QDISC_BYPASS: 1, unix.PACKET_COPY_THRESH: 128,
			}
			if c.kind == unix.SOCK_RAW {
				options[unix.PACKET_VNET_HDR_SZ] = 12
			}
			for option, value := range options {
				check(t, inet.SetInt(fd, unix.SOL_PACKET, option, value))
			}
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 50000))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1))
			check(t, inet.Filter{unix.BPF_LD | unix.BPF_IMM, unix.BPF_RET | unix.BPF_K | 0xffffffff<<32}.Attach(fd))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1))
			want := []Membership{
				{Device: "lo", Type: unix.PACKET_MR_ALLMULTI, Count: 1},
				{Device: "eth0", Type: unix.PACKET_MR_PROMISC, Count: 2},
				{Device: "eth0", Type: unix.PACKET_MR_MULTICAST, Address: []byte{1, 0, 94, 1, 2, 3}, Count: 1},
			}
			for i := range want {
				check(t, want[i].join(fd))
			}
			for _, s := range []int{open(t, unix.SOCK_RAW, 0, "")} { // somebody else's are not its
				check(t, (&Membership{Device: "lo", Type: unix.PACKET_MR_PROMISC, Count: 1}).join(s))
			}
			was, anew := again(t, fd)
			if was.Protocol != c.protocol || was.Device != c.device || was.CopyThreshold != 128 || len(was.Filter) != 2 {
				t.Errorf("it is %+v", was)
			}
			slices.Reverse(was.Memberships) // the kernel tells the last one first
			if diff := cmp.Diff(want, was.Memberships, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("memberships (-want +got):\n%s", diff)
			}
			got := must(Look(anew))
			if diff := cmp.Diff(was.Memberships, got.Memberships, cmpopts.SortSlices(func(a, b Membership) bool { return a.Type < b.Type })); diff != "" {
				t.Errorf("memberships (-before +after):\n%s", diff)
			}
			was.Memberships = got.Memberships
			mustLookAlike(t, was, anew)
			for option, value := range options {
				if option == unix.PACKET_COPY_THRESH { // older kernels do not tell
					continue
				}
				if n := must(inet.GetInt(anew, unix.SOL_PACKET, option)); n != value {
					t.Errorf("option %d is %d instead of %d", option, n, value)
				}
			}
		})
	}
}

// TestCaptures: one that was made again takes what it should, and no more; what waits is told.
func TestCaptures(t *testing.T) {
	enterNetwork(t)
	fd := open(t, unix.SOCK_DGRAM, unix.ETH_P_IP, "lo")
	// Packets with 100 bytes or more: len; jge #100; ret #-1; ret #0.
	check(t, inet.Filter{
		unix.BPF_LD | unix.BPF_W | unix.BPF_LEN, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K | 1<<24 | 100<<32,
		unix.BPF_RET | unix.BPF_K | 0xffffffff<<32, unix.BPF_RET | unix.BPF_K,
	}.Attach(fd))
	send := func(n int) {
		t.Helper()
		sender := must(net.Dial("udp", "127.0.0.1:9")) // nobody listens, which only this one is told
		defer sender.Close()
		must(sender.Write(make([]byte, n)))
	}
	s := must(Look(fd))
	anew := must(Restore(s))
	t.Cleanup(func() { unix.Close(anew) })
	send(10)
	send(200)
	for _, fd := range []int{fd, anew} {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 5000); n != 1 || err != nil {
			t.Fatalf("nothing comes: %v", err)
		}
		if must(inet.Unread(fd)) == 0 {
			t.Error("what waits is not told")
		}
		b := make([]byte, 1000)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil || n != 200+28 || binary.BigEndian.Uint16(b[2:]) != 200+28 {
			t.Errorf("%d bytes came, %v", n, err)
		}
	}
}

// TestRefused: what cannot move is named.
func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, fd int){
		"fanout": func(t *testing.T, fd int) {
			check(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, 7))
		},
		"fanout group 0": func(t *testing.T, fd int) { // of which getsockopt says what it says of none
			check(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, 0))
		},
		"ring": func(t *testing.T, fd int) {
			check(t, unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq{Block_size: 4096, Block_nr: 1, Frame_size: 2048, Frame_nr: 2}))
		},
		"device that is gone": func(t *testing.T, _ int) {
			check(t, netlink.LinkDel(must(netlink.LinkByName("eth0"))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			fd := open(t, unix.SOCK_RAW, unix.ETH_P_ALL, "eth0")
			spoil(t, fd)
			if _, err := Look(fd); !errors.Is(err, inet.ErrUnsupported) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestGarbage: what no kernel has told is refused, and harms nobody.
func TestGarbage(t *testing.T) {
	for _, s := range []Socket{
		{Type: unix.SOCK_STREAM},
		{Type: unix.SOCK_RAW, Options: []inet.Option{{Level: 1, Name: 999}}},
		{Type: unix.SOCK_RAW, Filter: make(inet.Filter, unix.BPF_MAXINSNS+1)},
		{Type: unix.SOCK_RAW, Memberships: []Membership{{Device: "lo", Type: 9, Count: 1}}},
		{Type: unix.SOCK_RAW, Memberships: []Membership{{Device: "lo"}}},
		{Type: unix.SOCK_RAW, Memberships: []Membership{{Device: "lo", Count: 1, Address: make([]byte, 33)}}},
	} {
		if fd, err := Restore(&s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: descriptor %d, %v", s, fd, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 100))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parse(data) })
}
