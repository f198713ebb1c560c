package packet

// What x/sys/unix lacks, of include/uapi/linux/packet_diag.h and sock_diag.h.
const (
	sockDiagByFamily = 20

	diagReqBytes = 20 // struct packet_diag_req: family, protocol, pad[2], ino, show, cookie[2]
	diagMsgBytes = 16 // struct packet_diag_msg: family, type, num[2], ino, cookie[2]

	showInfo   = 1
	showMCList = 2
	showRings  = 4
	showFanout = 8

	diagInfo   = 0
	diagMCList = 1
	diagRXRing = 2
	diagTXRing = 3
	diagFanout = 4

	infoBytes      = 24 // struct packet_diag_info: index, version, reserve, copy_thresh, tstamp, flags
	infoCopyThresh = 12

	mclistBytes  = 44 // struct packet_diag_mclist: index, count, type[2], alen[2], addr[32]
	addressBytes = 32 // MAX_ADDR_LEN (include/linux/netdevice.h)
)
