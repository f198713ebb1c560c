package resource

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// dumpSocket reads a socket of any kind. Those that cannot move are blockers, each with its
// name.
func dumpSocket(d *ProcessDump, o *openFile, f *image.File) error {
	fd, err := o.borrow()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	refuse := func(what, hint string) {
		d.Block(migrate.CodeDescriptor, hint, "%v is %s (%s)", o, what, o.link)
		f.Kind, f.Path = image.FileDevice, "/dev/null" // so that reading can go on
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("asking for its family: %w", err)
	}
	kind, err := inetKindOf(fd, family)
	switch {
	case err != nil:
		return err
	case kind.isTCP():
		return dumpTCP(d, o, f, fd, refuse)
	case kind.isUDP():
		return dumpUDP(d, f, fd, refuse)
	case kind.isRaw():
		return dumpRaw(d, f, fd, refuse)
	case family == unix.AF_PACKET:
		return dumpPacket(d, f, fd, refuse)
	case family == unix.AF_NETLINK:
		return dumpNetlink(d, o, f, fd, refuse)
	case family != unix.AF_UNIX:
		refuse(familyName(family, kind.protocol), "close it before the move: it is of a kind that cannot move yet")
		return nil
	}
	return dumpUnix(d, o, f, fd, refuse)
}

func familyName(family, protocol int) string {
	protocols := map[int]string{
		unix.IPPROTO_SCTP: "an SCTP socket", unix.IPPROTO_DCCP: "a DCCP socket", unix.IPPROTO_UDPLITE: "a UDP-Lite socket",
	}
	if name, ok := protocols[protocol]; ok {
		return name
	}
	names := map[int]string{
		unix.AF_INET: "an IPv4 socket", unix.AF_INET6: "an IPv6 socket",
		unix.AF_VSOCK: "a vsock socket", unix.AF_ALG: "a socket of the crypto API",
		unix.AF_XDP: "an XDP socket", unix.AF_CAN: "a CAN socket", unix.AF_KEY: "a key management socket", unix.AF_TIPC: "a TIPC socket",
		unix.AF_BLUETOOTH: "a Bluetooth socket", unix.AF_RDS: "an RDS socket", unix.AF_SMC: "an SMC socket",
	}
	if name, ok := names[family]; ok {
		return name
	}
	return fmt.Sprintf("a socket of family %d", family)
}
