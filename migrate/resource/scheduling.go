package resource

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// scheduling: policy, priority, nice value, affinity, I/O priority and timer
// slack of each thread; the out-of-memory score of the process. The agent sets
// them from outside.
var scheduling = processKind{
	name: "scheduling",
	dump: func(d *ProcessDump) error {
		score, err := d.Proc.Number("oom_score_adj", 10)
		if err != nil {
			return err
		}
		d.Process.OOMScoreAdj = int(score)
		if filter, err := d.Proc.Number("coredump_filter", 16); err == nil {
			d.Process.CoredumpFilter = uint64(filter)
		}
		for i := range d.Process.Threads {
			t := &d.Process.Threads[i]
			if err := dumpScheduling(d, t); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
		return nil
	},
	check: func(c *Check, p *image.Process) {
		if ownCapabilities()&(1<<unix.CAP_SYS_RESOURCE) == 0 {
			if own, err := ownOOMScore(); err == nil && p.OOMScoreAdj < own {
				c.Degrade(c.AllowDegraded, migrate.CodePrivilege, "give the agent there CAP_SYS_RESOURCE or a lower oom_score_adj", "oom_score_adj %d of process %d, the agent there may give %d", p.OOMScoreAdj, p.PID, own)
			}
		}
		for i := range p.Threads {
			if lost := lostProcessors(p.Threads[i].Affinity); lost != "" {
				c.Degrade(c.AllowDegraded, migrate.CodeCPU, "widen its affinity, or choose a host with these processors", "thread %d is bound to processors that are not there: %s", p.Threads[i].TID, lost)
			}
		}
	},
	restore: func(r *ProcessRestore) error {
		score := r.Process.OOMScoreAdj
		err := r.write("oom_score_adj", strconv.Itoa(score))
		if own, ownErr := ownOOMScore(); errors.Is(err, unix.EACCES) && ownErr == nil && score < own {
			err = nil // checked at preflight: degraded, and accepted
		}
		if err != nil {
			return err
		}
		if err := r.write("coredump_filter", fmt.Sprintf("%#x", r.Process.CoredumpFilter)); err != nil {
			return err
		}
		for i := range r.Process.Threads {
			t := &r.Process.Threads[i]
			if err := restoreScheduling(t); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
		return nil
	},
}

func ownOOMScore() (int, error) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func dumpScheduling(d *ProcessDump, t *image.Thread) error {
	attr, err := unix.SchedGetAttr(t.TID, 0)
	if err != nil {
		return fmt.Errorf("sched_getattr: %w", err)
	}
	t.Scheduling = image.Scheduling{
		Policy: attr.Policy, Flags: attr.Flags, Nice: attr.Nice, Priority: attr.Priority,
		Runtime: attr.Runtime, Deadline: attr.Deadline, Period: attr.Period,
	}
	if attr.Policy == unix.SCHED_DEADLINE {
		d.Block(migrate.CodeProcessState, "give it another policy with chrt", "thread %d is scheduled by SCHED_DEADLINE", t.TID)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(t.TID, &set); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	t.Affinity = affinityBytes(&set)
	if t.IOPriority, err = ioPriority(t.TID); err != nil {
		return fmt.Errorf("ioprio_get: %w", err)
	}
	slack, err := procfs.Process{PID: t.TID}.Read("timerslack_ns")
	if err != nil {
		return err
	}
	t.TimerSlack, err = strconv.ParseUint(strings.TrimSpace(string(slack)), 10, 64)
	return err
}

func restoreScheduling(t *image.Thread) error {
	attr := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: t.Scheduling.Policy, Flags: t.Scheduling.Flags & unix.SCHED_FLAG_RESET_ON_FORK,
		Nice: t.Scheduling.Nice, Priority: t.Scheduling.Priority,
	}
	if err := unix.SchedSetAttr(t.TID, &attr, 0); err != nil {
		return fmt.Errorf("sched_setattr: %w", err)
	}
	// A thread that may run everywhere may do so here, on however many.
	if set := affinitySet(t.Affinity); set != nil {
		if err := unix.SchedSetaffinity(t.TID, set); err != nil {
			return fmt.Errorf("sched_setaffinity: %w", err)
		}
	}
	if err := setIOPriority(t.TID, t.IOPriority); err != nil {
		return fmt.Errorf("ioprio_set: %w", err)
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", t.TID), []byte(strconv.FormatUint(t.TimerSlack, 10)), 0)
}

// affinityBytes is the set as a bit string, one byte for eight processors;
// empty for a thread that may run on all that this host has.
func affinityBytes(set *unix.CPUSet) []byte {
	restricted := false
	for _, cpu := range onlineProcessors() {
		restricted = restricted || !set.IsSet(cpu)
	}
	if !restricted {
		return nil
	}
	var out []byte
	for cpu := range len(set) * bits.UintSize {
		if set.IsSet(cpu) {
			for len(out) <= cpu/8 {
				out = append(out, 0)
			}
			out[cpu/8] |= 1 << (cpu % 8)
		}
	}
	return out
}

// affinitySet is the set of those of the processors that this host has; nil if
// there are none, or no restriction at all.
func affinitySet(affinity []byte) *unix.CPUSet {
	var set unix.CPUSet
	for _, cpu := range onlineProcessors() {
		if cpu/8 < len(affinity) && affinity[cpu/8]&(1<<(cpu%8)) != 0 {
			set.Set(cpu)
		}
	}
	if set.Count() == 0 {
		return nil
	}
	return &set
}

// lostProcessors are those of an affinity that this host does not have.
func lostProcessors(affinity []byte) string {
	online := onlineProcessors()
	var lost []string
	for cpu := range len(affinity) * 8 {
		if affinity[cpu/8]&(1<<(cpu%8)) != 0 && !slices.Contains(online, cpu) {
			lost = append(lost, strconv.Itoa(cpu))
		}
	}
	return strings.Join(lost, ",")
}

// onlineProcessors are those that the kernel runs on (Documentation/admin-guide/cputopology.rst).
func onlineProcessors() []int {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil
	}
	return parseProcessors(string(text))
}

// maxProcessors is the most that Linux is built for (NR_CPUS_RANGE_END, arch/x86/Kconfig).
const maxProcessors = 8192

// parseProcessors reads a list as "0-3,8". What does not look like one is left out.
func parseProcessors(text string) []int {
	var all []int
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 0 || to >= maxProcessors || len(all) > 0 && from <= all[len(all)-1] {
			continue
		}
		for cpu := from; cpu <= to; cpu++ {
			all = append(all, cpu)
		}
	}
	return all
}

const ioprioWhoProcess = 1

func ioPriority(tid int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(tid), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func setIOPriority(tid, priority int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), uintptr(priority)); errno != 0 {
		return errno
	}
	return nil
}
