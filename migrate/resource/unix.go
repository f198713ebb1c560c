package resource

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/unixsock"
)

// unixSocket: a unix socket (unix(7)): one that listens, one without a connection, one of a
// connected pair both of whose ends are inside the tree or whose other end was closed, a
// datagram socket that sends to another one's name.
var unixSocket = fileKind{
	dump:  dumpSocket,
	check: checkUnix,
	open: func(r *TreeRestore, f *image.File) (int, error) {
		fd, ok := r.sockets[f.Socket]
		if !ok {
			return 0, errors.New("it was not made")
		}
		if err := setStatusFlags(fd, f.Flags); err != nil {
			return 0, err
		}
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	},
}

// unixOptions are those of a unix socket that hold a value.
var unixOptions = []optionName{
	{unix.SOL_SOCKET, unix.SO_SNDBUF},
	{unix.SOL_SOCKET, unix.SO_RCVBUF},
	{unix.SOL_SOCKET, unix.SO_RCVLOWAT},
	{unix.SOL_SOCKET, unix.SO_PASSCRED},
	{unix.SOL_SOCKET, unix.SO_RCVTIMEO_NEW},
	{unix.SOL_SOCKET, unix.SO_SNDTIMEO_NEW},
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF},
	{unix.SOL_SOCKET, unix.SO_PASSSEC},
	{unix.SOL_SOCKET, unix.SO_PRIORITY},
	{unix.SOL_SOCKET, unix.SO_MARK},
	{unix.SOL_SOCKET, unix.SO_OOBINLINE},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP_NEW},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW},
	{unix.SOL_SOCKET, soPassPIDFD},
}

const soPassPIDFD = 76 // SO_PASSPIDFD (Linux 6.5)

// dumpUnix reads one, by fd, a descriptor of ours.
func dumpUnix(d *ProcessDump, o *openFile, f *image.File, fd int, refuse func(what, hint string)) error {
	state, err := unixsock.Look(uint32(o.st.Ino))
	if errors.Is(err, fs.ErrNotExist) {
		refuse("a unix socket of another network namespace", "close it before the move")
		return nil
	}
	if err != nil {
		return err
	}
	s := image.Socket{
		Type: state.Type, Peer: image.None, To: image.None, Shutdown: state.Shutdown, Name: state.Name,
		Listens: state.Status == unixsock.Listening,
	}
	if creds, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		s.PeerPID, s.PeerUID, s.PeerGID = int(creds.Pid), creds.Uid, creds.Gid
	}
	datagrams := state.Type == unix.SOCK_DGRAM
	wasConnected := !datagrams && s.PeerPID != 0 // and has lost its peer, if it has none
	s.Ended = !s.Listens && state.Peer == 0 && (state.HasPeer || wasConnected)
	connected := s.Ended || state.Peer != 0
	switch {
	case state.HasPeer && state.Peer == 0 && !datagrams && state.Shutdown != shutReceive|shutSend:
		// One to a listener of the tree has this accepted first.
		d.then(func() error {
			if !d.waitsForTree(state.Inode) {
				d.Block(migrate.CodeOutsideEnd, "close it before the move", "%v, %s, is a connection that its other end has not accepted yet", o, o.link)
			}
			return nil
		})
		connected = false
	case state.Waiting > 0 && !d.Inspect:
		return fmt.Errorf("%w: %d connections wait for process %d to accept them, at %s", ErrTryAgain, state.Waiting, d.Proc.PID, printable(s.Name))
	case state.Waiting > 0:
		d.Warn(migrate.CodeDescriptor, "let the program accept them first", "%d connections wait in %v, which listens at %s", state.Waiting, o, printable(s.Name))
	}
	if passed, ok := o.info.Value("scm_fds"); ok && passed != "0" && d.Inspect { // of Linux 5.12 and later
		d.Warn(migrate.CodeDescriptor, "let the program receive them first, should one of them be in the way", "%s descriptors are on their way in %v: what they are of is seen when the process stands still", passed, o)
	}
	s.Backlog = int(state.Backlog)
	if err := d.dumpUnixFile(&s, fd, connected && !datagrams); err != nil {
		return err
	}
	filtered, err := hasFilter(fd)
	if err != nil {
		return fmt.Errorf("asking for its filter: %w", err)
	}
	if filtered {
		d.Block(migrate.CodeDescriptor, "have the program detach it (SO_DETACH_FILTER)", "%v is a unix socket with a filter (%s)", o, o.link)
	}
	if s.Options, err = readSocketOptions(fd, unixOptions); err != nil {
		return err
	}
	f.Socket = len(d.image.Sockets)
	d.image.Sockets = append(d.image.Sockets, s)
	d.sockets[state.Inode] = unixEnd{index: f.Socket, peer: state.Peer, pending: state.Pending}
	d.unixEnds = append(d.unixEnds, unixSocketFound{o, state, f.Socket, connected && !datagrams})
	return nil
}

// dumpUnixFile finds out where the file of a socket is. A connection needs none: nobody
// connects to it.
func (d *ProcessDump) dumpUnixFile(s *image.Socket, fd int, connection bool) error {
	if connection || len(s.Name) == 0 || isAbstract(s.Name) {
		return nil
	}
	at, err := unixsock.FileOf(fd)
	if err != nil {
		return err
	}
	if at.Path != "" {
		s.File = &image.SocketFile{Path: at.Path, Device: at.Device, Inode: at.Inode, Mode: at.Mode, UID: at.UID, GID: at.GID}
	}
	return nil
}

// connectUnix notes who is at the other end, when all sockets of the tree are known.
func (d *ProcessDump) connectUnix(o *openFile, state unixsock.State, index image.Index) error {
	s := &d.image.Sockets[index]
	peer, inside := d.sockets[state.Peer]
	switch {
	case inside && peer.index == index:
		d.Block(migrate.CodeDescriptor, "close it before the move", "%v, %s, is a unix socket that is connected to itself", o, o.link)
		return nil
	case inside && peer.peer == state.Inode && !d.byName(index, peer.index):
		s.Peer = peer.index
		other := &d.image.Sockets[peer.index]
		apart := s.Accepted || other.Accepted || d.Inspect && (isAbstract(s.Name) || isAbstract(other.Name))
		if !apart && (s.PeerUID != other.PeerUID || s.PeerGID != other.PeerGID) {
			d.Block(migrate.CodeDescriptor, "close it before the move", "%v, %s, is a connection whose ends know each other as users %d and %d (groups %d and %d)", o, o.link, s.PeerUID, other.PeerUID, s.PeerGID, other.PeerGID)
		}
		return nil
	case inside && len(d.image.Sockets[peer.index].Name) == 0:
		d.Block(migrate.CodeDescriptor, "close it before the move", "%v, %s, sends to a unix socket without a name, which does not send to it", o, o.link)
		return nil
	case inside: // of datagrams alone
		s.To = peer.index
		return nil
	}
	if s.Type == unix.SOCK_DGRAM {
		other, err := unixsock.Look(state.Peer)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(other.Name) > 0 && (isAbstract(other.Name) || other.Name[0] == '/') {
			s.ToName = other.Name
			return nil
		}
	}
	d.Block(migrate.CodeOutsideEnd, "close it there first", "%v, %s, is connected to a socket of another process", o, o.link)
	return nil
}

// byName reports datagram sockets that were connected by their names, each to the other:
// they know no users of each other, as pairs do.
func (d *ProcessDump) byName(a, b image.Index) bool {
	one, other := &d.image.Sockets[a], &d.image.Sockets[b]
	const nobody = ^uint32(0)
	return one.Type == unix.SOCK_DGRAM && len(one.Name) > 0 && len(other.Name) > 0 && one.PeerUID == nobody
}

// unixEnd is a socket that is in the image.
type unixEnd struct {
	index image.Index
	peer  uint32 // the inode of who it is connected to

	pending []uint32 // of a listener: those of who waits
}

// waitsForTree reports a connection that a listener of the tree has not accepted yet.
func (d *ProcessDump) waitsForTree(inode uint32) bool {
	for _, s := range d.sockets {
		if slices.Contains(s.pending, inode) {
			return true
		}
	}
	return false
}

// isAbstract reports a name that is no path (unix(7)).
func isAbstract(name []byte) bool { return len(name) > 0 && name[0] == 0 }

// printable is a socket's name as tools show it: an abstract one begins with "@".
func printable(name []byte) string {
	if isAbstract(name) {
		return "@" + strings.ReplaceAll(string(name[1:]), "\x00", "@")
	}
	return string(name)
}

// checkUnix looks whether the socket can have its name here, and whether there is who it
// sends to.
func checkUnix(c *Check, f *image.File) {
	s := &c.Image.Sockets[f.Socket]
	if len(s.ToName) > 0 {
		if err := tryUnix(s.Type, func(fd int) error { return unixsock.Connect(fd, s.ToName) }); err != nil {
			c.Block(migrate.CodeFileMissing, "start what takes them there, or close the socket before the move", "a socket of the process sends datagrams to %s, to which there is no way there: %v", printable(s.ToName), err)
		}
	}
	name, err := stage(s)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.File != nil:
		c.Block(migrate.CodeFileMissing, "make it there", "a socket of the process is at %s, and its directory is not there", s.File.Path)
	case err != nil:
		c.Block(migrate.CodeDescriptor, "choose another host", "a socket of the process cannot be made there: %v", err)
	case s.File != nil:
		c.checkUnixFile(s)
	case isAbstract(s.Name):
		err := tryUnix(s.Type, func(fd int) error { return name.Bind(fd, unixsock.Access{}) })
		if errors.Is(err, unix.EADDRINUSE) {
			c.Block(migrate.CodeAddressTaken, "end what uses it there, or choose another host", "a socket of the process has the abstract name %s, which is in use there", printable(s.Name))
		} else if err != nil {
			c.Block(migrate.CodeDescriptor, "choose another host", "a socket of the process cannot be made there: %v", err)
		}
	}
}

// checkUnixFile looks what is in the way of a socket's file: not that of the socket itself,
// where both hosts see it, and not one that was left over.
func (c *Check) checkUnixFile(s *image.Socket) {
	if same, err := unixsock.Reaches(s.File.Path, s.File.Device, s.File.Inode); err == nil && same {
		return
	}
	info, err := os.Lstat(s.File.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && info.Mode().Type() == fs.ModeSocket {
		if used, err := inUse(s, info); err == nil && !used {
			return
		}
	}
	c.Block(migrate.CodeAddressTaken, "end what uses it there, remove it, or choose another host", "a socket of the process is at %s, where there is something else", s.File.Path)
}

// inUse reports whether a socket has the file that is in the way. To connect to it would be
// noticed, so that is for those alone that are not listed: of other network namespaces, or of
// file systems of which the kernel tells another device than stat(2).
func inUse(s *image.Socket, info fs.FileInfo) (bool, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false, errors.New("a file without an inode")
	}
	all, err := unixsock.List()
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(all, func(s unixsock.State) bool {
		return s.HasFile && s.Device == st.Dev && s.FileInode == uint32(st.Ino)
	}) {
		return true, nil
	}
	err = tryUnix(s.Type, func(fd int) error { return unixsock.Connect(fd, []byte(s.File.Path)) })
	return !errors.Is(err, unix.ECONNREFUSED), nil
}

// tryUnix calls f with a socket for the purpose.
func tryUnix(typ int, f func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// stage plans how a socket gets its name.
func stage(s *image.Socket) (unixsock.Staged, error) {
	if s.File != nil {
		return unixsock.PlanAt(s.Name, s.File.Path)
	}
	return unixsock.PlanUnlinked(s.Name, os.TempDir())
}

// A Name is that of a socket of an image.
type Name struct {
	Socket image.Index
	Staged unixsock.Staged
}

// names plans those of an image's sockets.
func names(m *image.Image) ([]Name, error) {
	var all []Name
	for i := range m.Sockets {
		if len(m.Sockets[i].Name) == 0 || m.Sockets[i].Accepted {
			continue
		}
		staged, err := stage(&m.Sockets[i])
		if err != nil {
			return nil, err
		}
		all = append(all, Name{i, staged})
	}
	return all, nil
}

// SocketFiles are the files of an image's unix sockets.
func SocketFiles(m *image.Image) []image.SocketFile {
	var all []image.SocketFile
	for i := range m.Sockets {
		if f := m.Sockets[i].File; f != nil {
			all = append(all, *f)
		}
	}
	return all
}

// RemoveSocketFiles removes those that are still there, when the process runs elsewhere.
func RemoveSocketFiles(all []image.SocketFile) error {
	var errs []error
	for _, f := range all {
		errs = append(errs, unixsock.RemoveIfSame(f.Path, f.Device, f.Inode))
	}
	return errors.Join(errs...)
}
