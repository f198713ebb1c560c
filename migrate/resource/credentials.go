package resource

import (
	"fmt"
	"slices"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// credentials: user and group ids, capabilities, secure bits and
// no_new_privs, for each thread (credentials(7), capabilities(7)). They are
// restored late: what follows needs no privileges.
var credentials = processKind{
	name: "credentials",
	dump: func(d *ProcessDump) error {
		for i := range d.Process.Threads {
			if err := dumpCredentials(d, &d.Process.Threads[i]); err != nil {
				return err
			}
		}
		return nil
	},
	check: func(c *Check, p *image.Process) {
		// The agent cannot give what it does not have.
		own := ownCapabilities()
		for i := range p.Threads {
			if missing := p.Threads[i].Credentials.Bounding &^ own; missing != 0 && p.Threads[i].TID == p.PID {
				c.Degrade(c.AllowDegraded, migrate.CodePrivilege, "let the agent there keep all capabilities", "process %d has capabilities in its bounding set that the agent there lacks: %s", p.PID, capabilityNames(missing))
			}
		}
	},
	restore: func(r *ProcessRestore) error {
		own := ownCapabilities()
		for i := range r.Process.Threads {
			t := &r.Process.Threads[i]
			b := r.Shell.Thread(t.TID).Batch(r.Ctx)
			addCredentials(b, &t.Credentials, own)
			if err := b.RunAll(r.Ctx); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
		return nil
	},
}

func dumpCredentials(d *ProcessDump, t *image.Thread) error {
	status, err := d.status(t.TID)
	if err != nil {
		return err
	}
	c := &t.Credentials
	c.UIDs, c.GIDs, c.Groups = status.UIDs, status.GIDs, status.Groups
	c.Effective, c.Permitted, c.Inherit = status.CapEff, status.CapPrm, status.CapInh
	c.Bounding, c.Ambient = status.CapBnd, status.CapAmb
	c.NoNewPrivs = status.NoNewPrivs
	b := d.batch(t.TID)
	get := b.Call(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	d.then(func() error {
		bits, err := b.Result(get)
		c.SecureBits = uint32(bits)
		return err
	})
	return nil
}

// capabilityABI is struct __user_cap_header_struct and two of
// __user_cap_data_struct (include/uapi/linux/capability.h).
type capabilityHeader struct {
	_       structs.HostLayout
	version uint32
	pid     int32
}

type capabilityData struct {
	_    structs.HostLayout
	sets [2]struct{ effective, permitted, inheritable uint32 }
}

const capabilityVersion3 = 0x20080522

// Secure bits (include/uapi/linux/securebits.h): capabilities survive a change
// of ids.
const (
	secbitNoSetuidFixup = 1 << 2
	secbitKeepCaps      = 1 << 4
)

// addCredentials adds the calls that turn root's credentials into c. Each call
// needs only what the ones before have left.
func addCredentials(b *parasite.Batch, c *image.Credentials, own uint64) {
	if c.NoNewPrivs {
		b.Call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	b.Call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, secbitNoSetuidFixup|secbitKeepCaps, 0, 0, 0)
	// The inheritable set may hold what the bounding set does not any more.
	capset(b, own, own, c.Inherit&own)
	for capability := range 64 {
		if bit := uint64(1) << capability; own&bit != 0 && c.Bounding&bit == 0 {
			b.Call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		}
	}
	groups := make([]byte, 0, 4*len(c.Groups))
	for _, g := range c.Groups {
		groups = append(groups, byte(g), byte(g>>8), byte(g>>16), byte(g>>24))
	}
	b.Call(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), b.Bytes(groups))
	b.Call(unix.SYS_SETRESGID, uintptr(c.GIDs[0]), uintptr(c.GIDs[1]), uintptr(c.GIDs[2]))
	b.Call(unix.SYS_SETRESUID, uintptr(c.UIDs[0]), uintptr(c.UIDs[1]), uintptr(c.UIDs[2]))
	// setfsgid and setfsuid return the former id instead of an error.
	if c.GIDs[3] != c.GIDs[1] {
		b.Call(unix.SYS_SETFSGID, uintptr(c.GIDs[3]))
	}
	if c.UIDs[3] != c.UIDs[1] {
		b.Call(unix.SYS_SETFSUID, uintptr(c.UIDs[3]))
	}
	permitted, inheritable := c.Permitted&own, c.Inherit&own
	for capability := range 64 {
		if c.Ambient&own&(1<<capability) != 0 {
			b.Call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(capability), 0, 0)
		}
	}
	b.Call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, uintptr(c.SecureBits), 0, 0, 0)
	capset(b, c.Effective&own, permitted, inheritable)
}

func capset(b *parasite.Batch, effective, permitted, inheritable uint64) {
	header := capabilityHeader{version: capabilityVersion3}
	var data capabilityData
	effective &= permitted
	for i := range data.sets {
		data.sets[i].effective = uint32(effective >> (32 * i))
		data.sets[i].permitted = uint32(permitted >> (32 * i))
		data.sets[i].inheritable = uint32(inheritable >> (32 * i))
	}
	b.Call(unix.SYS_CAPSET, parasite.Struct(b, &header), parasite.Struct(b, &data))
}

// ownCapabilities are those that this process, and so a shell of its making, has.
func ownCapabilities() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
}

// capabilityNames lists the capabilities of a set by number, with the names of
// those that are commonly lacking.
func capabilityNames(set uint64) string {
	names := map[int]string{
		unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE", unix.CAP_SYS_MODULE: "CAP_SYS_MODULE",
		unix.CAP_SYS_RAWIO: "CAP_SYS_RAWIO", unix.CAP_SYS_BOOT: "CAP_SYS_BOOT", unix.CAP_SYS_TIME: "CAP_SYS_TIME",
		unix.CAP_MKNOD: "CAP_MKNOD", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
	}
	var list []string
	for capability := range 64 {
		if set&(1<<capability) == 0 {
			continue
		}
		name, ok := names[capability]
		if !ok {
			name = fmt.Sprintf("capability %d", capability)
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return fmt.Sprint(list)
}
