package unixsock

import "golang.org/x/sys/unix"

// Of include/uapi/linux/sock_diag.h and unix_diag.h.
const (
	sockDiagByFamily = 20

	udiagShowName  = 1 << 0
	udiagShowVFS   = 1 << 1
	udiagShowPeer  = 1 << 2
	udiagShowIcons = 1 << 3
	udiagShowRqlen = 1 << 4
	udiagShowUID   = 1 << 6

	unixDiagName     = 0
	unixDiagVFS      = 1
	unixDiagPeer     = 2
	unixDiagIcons    = 3
	unixDiagRqlen    = 4
	unixDiagShutdown = 6
	unixDiagUID      = 7

	unixDiagReqBytes = 24 // struct unix_diag_req
	unixDiagMsgBytes = 16 // struct unix_diag_msg
)

// siocUnixFile is SIOCUNIXFILE (include/uapi/linux/un.h).
const siocUnixFile = unix.SIOCPROTOPRIVATE

// maxNameBytes is the size of sun_path. A path may fill it: the NUL behind it is
// the kernel's (unix_mkname_bsd, net/unix/af_unix.c).
const maxNameBytes = 108

// device is what stat(2) calls the device that the kernel calls dev: MKDEV has 20
// bits for the minor number (include/linux/kdev_t.h).
func device(dev uint32) uint64 {
	return unix.Mkdev(dev>>20, dev&(1<<20-1))
}
