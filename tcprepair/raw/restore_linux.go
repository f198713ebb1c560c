package raw

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Restore makes a socket of what Look has read on another host. The local address must be
// the host's own by now; early, it may become that later. It takes packets when it has all
// that decides about them.
// The descriptor is non-blocking and closed by exec. The caller needs CAP_NET_ADMIN and
// CAP_NET_RAW; of ping its group must be one of net.ipv4.ping_group_range (icmp(7)), else the
// error is unix.EACCES. On an error nothing is left.
func Restore(s *Socket, early bool) (fd int, err error) {
	if err := s.Validate(); err != nil {
		return -1, err
	}
	if fd, err = s.socket(); err != nil {
		return -1, err
	}
	if err := s.build(fd, early); err != nil {
		return -1, errors.Join(fmt.Errorf("restoring %v: %w", s, err), unix.Close(fd))
	}
	return fd, nil
}

// CanBind reports why this host would not let there be such a socket at present, as Restore
// would. To find out, the address is taken for a moment. An identifier of ping that another
// socket here has is in use, also if the kernel would let them share it: only one of them
// would get the answers (ping_lookup, net/ipv4/ping.c).
func CanBind(s *Socket, early bool) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.Ping && s.Local.Port() != 0 {
		all, err := List()
		if err != nil {
			return err
		}
		for _, l := range all {
			other, own := l.Local, s.Local.Addr().WithZone("")
			if l.Ping && l.Number == s.Local.Port() && other.Is4() == own.Is4() && (other == own || other.IsUnspecified() || own.IsUnspecified()) {
				return fmt.Errorf("a ping socket at %v has the identifier %d: %w", other, l.Number, unix.EADDRINUSE)
			}
		}
	}
	fd, err := s.socket()
	if err != nil {
		return err
	}
	return errors.Join(s.bind(fd, early), unix.Close(fd))
}

func (s *Socket) socket() (int, error) {
	kind := unix.SOCK_RAW
	if s.Ping {
		kind = unix.SOCK_DGRAM
	}
	return inet.Open(kind, inet.Identity{IPv6: s.IPv6, Protocol: s.Protocol, UID: s.UID, GID: s.GID})
}

// bind gives it its local address.
func (s *Socket) bind(fd int, early bool) error {
	if err := inet.Raw.Set(fd, s.Options, nil, inet.BeforeBind); err != nil || !s.Local.IsValid() {
		return err
	}
	return inet.Bind(fd, s.Local, s.IPv6, early)
}

func (s *Socket) build(fd int, early bool) error {
	if err := shut(fd); err != nil {
		return err
	}
	if err := s.bind(fd, early); err != nil {
		return err
	}
	if err := inet.Raw.Set(fd, s.Options, nil, inet.WhileSilent); err != nil {
		return err
	}
	if err := setHeaders(fd, s.Headers); err != nil {
		return err
	}
	if err := s.Devices.Set(fd, s.IPv6); err != nil {
		return err
	}
	for i := range s.Memberships {
		if err := s.Memberships[i].Join(fd); err != nil {
			return err
		}
	}
	if err := inet.Connect(fd, s.Remote, s.IPv6, early); err != nil {
		return err
	}
	if err := s.Buffers.Settle(fd); err != nil {
		return err
	}
	if err := s.open(fd); err != nil {
		return err
	}
	if err := inet.Raw.Set(fd, s.Options, nil, inet.AtLast); err != nil {
		return err
	}
	return s.Shutdown.Apply(fd)
}

// shut has a socket take nothing, and throws away what it has taken since it was made.
func shut(fd int) error {
	if err := (inet.Filter{unix.BPF_RET | unix.BPF_K}).Attach(fd); err != nil {
		return fmt.Errorf("keeping packets out: %w", err)
	}
	for {
		_, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("throwing away what came too early: %w", err)
		}
	}
}

// open gives it its own filter.
func (s *Socket) open(fd int) error {
	if len(s.Filter) > 0 {
		if err := s.Filter.Attach(fd); err != nil {
			return fmt.Errorf("attaching the filter: %w", err)
		}
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("letting packets in: %w", err)
	}
	return nil
}
