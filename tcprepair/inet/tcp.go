package inet

import (
	"slices"

	"golang.org/x/sys/unix"
)

// What x/sys/unix lacks, of include/uapi/linux/tcp.h.
const (
	TCPRTOMaxMS    = 44 // Linux 6.15
	tcpRTOMinUS    = 45
	tcpDelACKMaxUS = 46
)

// TCP is what its sockets have. Not among them: what acts once (TCP_QUICKACK).
var TCP = newTable(slices.Concat(internet, []Kind{
	{unix.SOL_TCP, unix.TCP_CONGESTION, "TCP_CONGESTION", 0, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_SYNCNT, "TCP_SYNCNT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_LINGER2, "TCP_LINGER2", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", 4, AtLast, Any},
	{unix.SOL_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_FASTOPEN, "TCP_FASTOPEN", 4, AtLast, Any},
	{unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_SAVE_SYN, "TCP_SAVE_SYN", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_INQ, "TCP_INQ", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_TX_DELAY, "TCP_TX_DELAY", 4, WhileSilent, Any},
	{unix.SOL_TCP, TCPRTOMaxMS, "TCP_RTO_MAX_MS", 4, WhileSilent, Any},
	{unix.SOL_TCP, tcpRTOMinUS, "TCP_RTO_MIN_US", 4, WhileSilent, Any},
	{unix.SOL_TCP, tcpDelACKMaxUS, "TCP_DELACK_MAX_US", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_CORK, "TCP_CORK", 4, WhileSilent, Any},
	{unix.SOL_TCP, unix.TCP_NODELAY, "TCP_NODELAY", 4, WhileSilent, Any},
	// Repair mode has a value of its own.
	{unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR", 4, AtLast, Any},
	// It changes with each look at the queue (Linux 6.9).
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF, "SO_PEEK_OFF", 4, AtLast, Any},
})...)
