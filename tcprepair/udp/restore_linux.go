package udp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Restore makes a socket of what Look has read on another host, but for its queue. The local
// address must be the host's own by now; early, it may become that later.
// The descriptor is non-blocking and closed by exec. The caller needs CAP_NET_ADMIN and
// CAP_NET_RAW. On an error nothing is left.
func Restore(s *Socket, early bool) (fd int, err error) {
	if err := s.Validate(); err != nil {
		return -1, err
	}
	if fd, err = s.socket(); err != nil {
		return -1, err
	}
	if err := s.build(fd, early); err != nil {
		return -1, errors.Join(fmt.Errorf("restoring the UDP socket at %v: %w", s.Local, err), unix.Close(fd))
	}
	return fd, nil
}

// CanBind reports why this host would not let a socket have its local address at present:
// the address is not the host's, or another socket has the port. To find out, the address
// is taken for a moment. Early, the address need not be the host's, as for Restore.
func CanBind(s *Socket, early bool) error {
	if err := s.Validate(); err != nil {
		return err
	}
	fd, err := s.socket()
	if err != nil {
		return err
	}
	return errors.Join(s.bind(fd, early), unix.Close(fd))
}

func (s *Socket) socket() (int, error) {
	return inet.Open(unix.SOCK_DGRAM, inet.Identity{IPv6: s.IPv6, Protocol: unix.IPPROTO_UDP, UID: s.UID, GID: s.GID})
}

// bind gives it its local address.
func (s *Socket) bind(fd int, early bool) error {
	if err := inet.UDP.Set(fd, s.Options, nil, inet.BeforeBind); err != nil || !s.Local.IsValid() {
		return err
	}
	return inet.Bind(fd, s.Local, s.IPv6, early)
}

func (s *Socket) build(fd int, early bool) error {
	if err := s.bind(fd, early); err != nil {
		return err
	}
	if err := inet.UDP.Set(fd, s.Options, nil, inet.WhileSilent); err != nil {
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
	if len(s.Filter) > 0 {
		if err := s.Filter.Attach(fd); err != nil {
			return fmt.Errorf("attaching the filter: %w", err)
		}
	}
	if err := inet.UDP.Set(fd, s.Options, nil, inet.AtLast); err != nil {
		return err
	}
	return s.Shutdown.Apply(fd)
}
