package forward

import "golang.org/x/sys/unix"

// What x/sys/unix lacks of include/uapi/linux/netfilter/nf_tables.h.
const (
	nftaFwdSregDev  = unix.NFTA_FWD_SREG_DEV
	nftaFwdSregAddr = 2
	nftaFwdNfproto  = 3

	nftSetConcat      = 0x80
	nftaSetDescConcat = 2
	nftaSetFieldLen   = 1
)
