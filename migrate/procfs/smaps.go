package procfs

import (
	"fmt"
	"strings"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// VMFlags are the two-letter words behind "VmFlags:" in /proc/PID/smaps.
type VMFlags string

// Has reports whether the words contain flag.
func (f VMFlags) Has(flag string) bool {
	for word := range strings.FieldsSeq(string(f)) {
		if word == flag {
			return true
		}
	}
	return false
}

// restorable maps the words to what an image carries. The words lf, um and uw
// do not appear: the first has no word of its own, the others are our own
// dirty tracking.
var restorable = map[string]image.VMFlags{
	"gd": image.FlagGrowsDown,
	"lo": image.FlagLocked,
	"lf": image.FlagLockOnFault,
	"sr": image.FlagSequential,
	"rr": image.FlagRandom,
	"dc": image.FlagDontFork,
	"dd": image.FlagDontDump,
	"wf": image.FlagWipeOnFork,
	"hg": image.FlagHugePage,
	"nh": image.FlagNoHugePage,
	"mg": image.FlagMergeable,
	"nr": image.FlagNoReserve,
	"mw": image.FlagMayWrite,
	"sl": image.FlagSealed,
}

// Image is what of the flags a moved process gets back.
func (f VMFlags) Image() image.VMFlags {
	var flags image.VMFlags
	for word := range strings.FieldsSeq(string(f)) {
		flags |= restorable[word]
	}
	return flags
}

// ParseSmaps takes the flags of each mapping, by its start, out of
// /proc/PID/smaps.
func ParseSmaps(data []byte) (map[uint64]VMFlags, error) {
	all := make(map[uint64]VMFlags)
	var current *VMA
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, isField := strings.Cut(line, ":")
		// A field's name is one word; a mapping's line has a range in front.
		if !isField || strings.ContainsAny(name, " -") {
			v, err := parseVMA(line)
			if err != nil {
				return nil, fmt.Errorf("parsing smaps: line %q: %w", line, err)
			}
			current = &v
			continue
		}
		if current == nil {
			return nil, fmt.Errorf("parsing smaps: line %q before any mapping", line)
		}
		if name == "VmFlags" {
			all[current.Start] = VMFlags(strings.TrimSpace(value))
		}
	}
	return all, nil
}
