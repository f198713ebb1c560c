package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A tap sees what a server at a service address sends to the outside world.
type tap struct {
	t       *testing.T
	fd      int
	server  netip.AddrPort
	macs    map[[6]byte]string // of the hosts
	stopped chan struct{}

	mu     sync.Mutex
	frames []frame // in order
}

// A frame is a TCP segment of it.
type frame struct {
	from    string // the host that has sent it
	flow    [4]byte
	seq     uint32
	payload int
	rst     bool
}

// newTap begins to look.
func newTap(t *testing.T, server netip.AddrPort) *tap {
	t.Helper()
	w := &tap{t: t, server: server, macs: make(map[[6]byte]string), stopped: make(chan struct{})}
	for _, h := range []string{"host-a", "host-b", "host-c"} {
		if err := within(t, h, func() error {
			device, err := net.InterfaceByName("eth0")
			if err == nil {
				w.macs[[6]byte(device.HardwareAddr)] = h
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := within(t, "client", func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		device, err := net.InterfaceByName("eth0")
		return errors.Join(err,
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: device.Index}))
	}); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go w.read(over)
	t.Cleanup(func() {
		close(over)
		<-w.stopped
		unix.Close(w.fd)
	})
	return w
}

func (w *tap) read(over <-chan struct{}) {
	defer close(w.stopped)
	buf := make([]byte, 1<<17)
	for {
		select {
		case <-over:
			return
		default:
		}
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if err == nil {
			w.take(buf[:n])
		}
	}
}

// take notes a TCP segment of the server.
func (w *tap) take(b []byte) {
	const ethernet = 14
	if len(b) < ethernet+40 {
		return
	}
	ip := b[ethernet:]
	var from netip.Addr
	var tcp []byte
	switch {
	case ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_TCP:
		from = netip.AddrFrom4([4]byte(ip[12:16]))
		ip = ip[:min(len(ip), int(binary.BigEndian.Uint16(ip[2:])))]
		tcp = ip[ip[0]&0xf*4:]
	case ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_TCP && len(ip) >= 60:
		from = netip.AddrFrom16([16]byte(ip[8:24]))
		ip = ip[:min(len(ip), 40+int(binary.BigEndian.Uint16(ip[4:])))]
		tcp = ip[40:]
	}
	if len(tcp) < 20 || netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)) != w.server {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = append(w.frames, frame{
		from: w.macs[[6]byte(b[6:12])], flow: [4]byte(tcp[:4]), seq: binary.BigEndian.Uint32(tcp[4:]), payload: len(tcp) - int(tcp[12]>>4)*4,
		rst: tcp[13]&4 != 0,
	})
}

// judge says what was seen since the last time: nothing may have been reset, nothing may
// have come from a host when another one had sent something, but for the hosts of moves,
// in their order. again is how many segments came more than once.
func (w *tap) judge(route ...string) (again int) {
	w.t.Helper()
	drained := w.drain()
	at := 0
	ends := make(map[[4]byte]uint32)
	for i, f := range drained {
		for at < len(route) && f.from != route[at] {
			at++
		}
		if at == len(route) {
			w.t.Errorf("segment %d of %d is from %q, which should be silent: hosts %v", i, len(drained), f.from, route)
			return again
		}
		if f.rst {
			w.t.Errorf("segment %d of %d, from %s, is a reset", i, len(drained), f.from)
		}
		if f.payload == 0 {
			continue
		}
		end, known := ends[f.flow]
		if known && int32(f.seq-end) < 0 {
			again++
		}
		if now := f.seq + uint32(f.payload); !known || int32(now-end) > 0 {
			ends[f.flow] = now
		}
	}
	if len(drained) == 0 {
		w.t.Error("nothing was seen on the wire")
	}
	return again
}

// drain returns what was seen since the last time.
func (w *tap) drain() []frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	frames := w.frames
	w.frames = nil
	return frames
}
