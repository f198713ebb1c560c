package resource

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// netlinkSocket: a socket of netlink(7), of those protocols whose numbers mean the same on
// every host. What its program knows of the host's devices and routes is the source's.
var netlinkSocket = fileKind{
	check: func(c *Check, f *image.File) {
		err := tryNetlink(f.Netlink)
		if errors.Is(err, unix.EADDRINUSE) {
			c.Block(migrate.CodeAddressTaken, "end what uses it there, or choose another host", "a netlink socket of the process has the port %d, which is in use there", f.Netlink.Port)
		} else if err != nil {
			c.Block(migrate.CodeDescriptor, "choose another host", "a netlink socket of the process cannot be made there: %v", err)
		}
	},
	open: func(r *TreeRestore, f *image.File) (int, error) {
		fd, err := makeNetlink(f.Netlink)
		if err != nil {
			return 0, err
		}
		err = r.setSocketOptions(fd, f.Netlink.Options)
		if err == nil && len(f.Netlink.Filter) > 0 {
			err = f.Netlink.Filter.Attach(fd)
		}
		if err == nil {
			err = setStatusFlags(fd, f.Flags)
		}
		if err != nil {
			return 0, errors.Join(err, unix.Close(fd))
		}
		return fd, nil
	},
}

// netlinkProtocols are those that can move: families of NETLINK_GENERIC have other numbers
// elsewhere, others are about the state of one host.
var netlinkProtocols = map[int]string{
	unix.NETLINK_ROUTE: "routes", unix.NETLINK_KOBJECT_UEVENT: "device events", unix.NETLINK_SOCK_DIAG: "sockets",
}

// netlinkOptions are those that hold a value, and that older kernels may not have.
var netlinkOptions = []optionName{
	{unix.SOL_SOCKET, unix.SO_SNDBUF},
	{unix.SOL_SOCKET, unix.SO_RCVBUF},
	{unix.SOL_SOCKET, unix.SO_RCVLOWAT},
	{unix.SOL_SOCKET, unix.SO_PASSCRED},
	{unix.SOL_SOCKET, unix.SO_RCVTIMEO_NEW},
	{unix.SOL_SOCKET, unix.SO_SNDTIMEO_NEW},
	{unix.SOL_SOCKET, unix.SO_PRIORITY},
	{unix.SOL_SOCKET, unix.SO_MARK},
	{unix.SOL_SOCKET, unix.SO_RXQ_OVFL},
	{unix.SOL_NETLINK, unix.NETLINK_PKTINFO},
	{unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR},
	{unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS},
	{unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID},
	{unix.SOL_NETLINK, unix.NETLINK_CAP_ACK},
	{unix.SOL_NETLINK, unix.NETLINK_EXT_ACK},
	{unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK},
}

// dumpNetlink reads one, by fd, a descriptor of ours.
func dumpNetlink(d *ProcessDump, o *openFile, f *image.File, fd int, refuse func(what, hint string)) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	if elsewhere, err := d.isElsewhere(fd, "a netlink socket", refuse); elsewhere || err != nil {
		return err
	}
	if netlinkProtocols[protocol] == "" {
		refuse(fmt.Sprintf("a netlink socket of protocol %d", protocol), "close it before the move")
		return nil
	}
	n := &image.Netlink{Protocol: protocol}
	if n.Type, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return err
	}
	if err := readNetlinkAddresses(n, fd); err != nil {
		return err
	}
	if n.Options, err = readSocketOptions(fd, netlinkOptions); err != nil {
		return err
	}
	n.Filter, err = inet.ReadFilter(fd, "a netlink socket")
	switch {
	case errors.Is(err, inet.ErrUnsupported):
		refuse(err.Error(), "have the program detach it")
		return nil
	case err != nil:
		return err
	}
	if !d.Inspect {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // takes nothing, not even an error
		if _, err := unix.Poll(poll, 0); err != nil {
			return fmt.Errorf("looking for messages: %w", err)
		}
		if poll[0].Revents&(unix.POLLIN|unix.POLLERR) != 0 {
			return fmt.Errorf("%w: process %d has not read what the kernel has told it (netlink, descriptor %d)", ErrTryAgain, d.Proc.PID, o.fd)
		}
	}
	f.Kind, f.Netlink = image.FileNetlink, n
	d.Warn(migrate.CodeRecreated, "have it look anew", "%v tells it of %s (netlink): what it knows of them is of the host that it leaves", o, netlinkProtocols[protocol])
	return nil
}

// readNetlinkAddresses reads its port, the groups that it is in, and who it sends to.
func readNetlinkAddresses(n *image.Netlink, fd int) error {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	from, ok := local.(*unix.SockaddrNetlink)
	to, too := remote.(*unix.SockaddrNetlink)
	if !ok || !too {
		return fmt.Errorf("addresses %T and %T", local, remote)
	}
	n.Port, n.ToPort, n.ToGroups = from.Pid, to.Pid, to.Groups
	const most = 128 // bytes: groups are few
	set, err := inet.Get(fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS, most)
	if err != nil {
		return fmt.Errorf("reading its groups: %w", err)
	}
	for i := 0; i+4 <= len(set); i += 4 {
		word := binary.NativeEndian.Uint32(set[i:])
		for bit := range 32 {
			if word&(1<<bit) != 0 {
				n.Groups = append(n.Groups, i*8+bit+1)
			}
		}
	}
	return nil
}

// makeNetlink makes one, but for its options.
func makeNetlink(n *image.Netlink) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_NETLINK, n.Type|unix.SOCK_CLOEXEC, n.Protocol); err != nil {
		return -1, err
	}
	if n.Port != 0 {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: n.Port})
	}
	for _, group := range n.Groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err == nil && (n.ToPort != 0 || n.ToGroups != 0) {
		err = unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: n.ToPort, Groups: n.ToGroups})
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("making a netlink socket with port %d: %w", n.Port, err), unix.Close(fd))
	}
	return fd, nil
}

// tryNetlink makes one for a moment.
func tryNetlink(n *image.Netlink) error {
	fd, err := makeNetlink(n)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
