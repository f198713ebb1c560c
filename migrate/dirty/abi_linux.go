package dirty

import "structs"

// What x/sys/unix lacks of include/uapi/linux/userfaultfd.h and
// include/uapi/linux/fs.h.
const (
	uffdioAPI      = 0xc018aa3f
	uffdioRegister = 0xc020aa00

	uffdAPI                  = 0xaa
	uffdFeatureWPFault       = 1 << 0
	uffdFeatureWPUnpopulated = 1 << 13
	uffdFeatureWPAsync       = 1 << 15
	uffdRegisterModeWP       = 1 << 1

	// UserModeOnly is the flag of userfaultfd(2) with which an unprivileged
	// process may create one.
	UserModeOnly = 1

	pagemapScan = 0xc0606610

	pageIsWPAllowed = 1 << 0
	pageIsWritten   = 1 << 1
	pageIsFile      = 1 << 2
	pageIsPresent   = 1 << 3
	pageIsSwapped   = 1 << 4
	pageIsGuard     = 1 << 8

	scanWPMatching   = 1 << 0
	scanCheckWPAsync = 1 << 1
)

// uffdioAPIArg is struct uffdio_api.
type uffdioAPIArg struct {
	_        structs.HostLayout
	api      uint64
	features uint64
	ioctls   uint64
}

// uffdioRegisterArg is struct uffdio_register.
type uffdioRegisterArg struct {
	_      structs.HostLayout
	start  uint64
	length uint64
	mode   uint64
	ioctls uint64
}

// scanArg is struct pm_scan_arg.
type scanArg struct {
	_                 structs.HostLayout
	size              uint64
	flags             uint64
	start             uint64
	end               uint64
	walkEnd           uint64
	vec               uint64
	vecLen            uint64
	maxPages          uint64
	categoryInverted  uint64
	categoryMask      uint64
	categoryAnyOfMask uint64
	returnMask        uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	_          structs.HostLayout
	start      uint64
	end        uint64
	categories uint64
}
