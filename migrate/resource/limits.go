package resource

import (
	"math"
	"strconv"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// limits: resource limits (getrlimit(2)). Raising a hard limit needs
// CAP_SYS_RESOURCE, which an agent need not have.
var limits = processKind{
	name: "resource limits",
	dump: func(d *ProcessDump) error {
		all, err := d.Proc.Limits()
		if err != nil {
			return err
		}
		for _, l := range all {
			d.Process.Limits = append(d.Process.Limits, image.Limit{Soft: l.Soft, Hard: l.Hard})
		}
		return nil
	},
	check: func(c *Check, p *image.Process) {
		if ownCapabilities()&(1<<unix.CAP_SYS_RESOURCE) != 0 {
			return
		}
		for number, l := range p.Limits {
			if most := ownHardLimit(number); l.Hard > most {
				c.Degrade(c.AllowDegraded, migrate.CodePrivilege, "raise the agent's own limit there, or give it CAP_SYS_RESOURCE", "hard limit %d of process %d is %s, the agent there may give %s", number, p.PID, limitText(l.Hard), limitText(most))
			}
		}
	},
	restore: func(r *ProcessRestore) error {
		privileged := ownCapabilities()&(1<<unix.CAP_SYS_RESOURCE) != 0
		b := r.batch()
		for number, l := range r.Process.Limits {
			value := limitABI{soft: l.Soft, hard: l.Hard}
			if !privileged {
				value.hard = min(value.hard, ownHardLimit(number))
				value.soft = min(value.soft, value.hard)
			}
			b.Call(unix.SYS_PRLIMIT64, 0, uintptr(number), parasite.Struct(b, &value), 0)
		}
		return b.RunAll(r.Ctx)
	},
}

// limitABI is struct rlimit64 (include/uapi/linux/resource.h).
type limitABI struct {
	_    structs.HostLayout
	soft uint64
	hard uint64
}

// ownHardLimit is the most that a shell, which inherits the agent's limits, can have.
func ownHardLimit(number int) uint64 {
	var l unix.Rlimit
	if number >= procfs.LimitCount || unix.Getrlimit(number, &l) != nil {
		return math.MaxUint64
	}
	return l.Max
}

func limitText(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}
