package procfs

import (
	"fmt"
	"strconv"
	"strings"
)

// Stat is what we use of /proc/PID/stat.
type Stat struct {
	Command    string
	State      byte
	PPID       int
	PGID       int
	SID        int
	TTY        int
	Flags      uint64 // PF_* of include/linux/sched.h
	StartTime  uint64 // clock ticks since boot
	StartCode  uint64
	EndCode    uint64
	StartStack uint64
	StartData  uint64
	EndData    uint64
	StartBrk   uint64
	ArgStart   uint64
	ArgEnd     uint64
	EnvStart   uint64
	EnvEnd     uint64
}

// Exiting reports whether the thread is on its way out, or has gone it.
func (s *Stat) Exiting() bool {
	const exiting = 0x00000004 // PF_EXITING
	return s.Flags&exiting != 0 || s.State == 'Z' || s.State == 'X'
}

// KernelThread reports whether it is a thread of the kernel's.
func (s *Stat) KernelThread() bool {
	const kthread = 0x00200000 // PF_KTHREAD; older kernels do not say it in status
	return s.Flags&kthread != 0
}

// ParseStat parses /proc/PID/stat. The command stands in parentheses and may
// itself contain any character.
func ParseStat(data []byte) (Stat, error) {
	text := strings.TrimSuffix(string(data), "\n")
	open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || shut < open {
		return Stat{}, fmt.Errorf("parsing stat: no command in %q", text)
	}
	s := Stat{Command: text[open+1 : shut]}
	// Fields are numbered as in proc(5), the state being the third.
	words := strings.Fields(text[shut+1:])
	if len(words) < 49 || len(words[0]) != 1 {
		return Stat{}, fmt.Errorf("parsing stat: %d fields behind the command", len(words))
	}
	s.State = words[0][0]
	var firstErr error
	field := func(n int) uint64 {
		v, err := strconv.ParseInt(words[n-3], 10, 64)
		if err != nil {
			var u uint64
			if u, err = strconv.ParseUint(words[n-3], 10, 64); err == nil {
				return u
			}
			firstErr = err
		}
		return uint64(v)
	}
	s.PPID = int(field(4))
	s.PGID = int(field(5))
	s.SID = int(field(6))
	s.TTY = int(field(7))
	s.Flags = field(9)
	s.StartTime = field(22)
	s.StartCode = field(26)
	s.EndCode = field(27)
	s.StartStack = field(28)
	s.StartData = field(45)
	s.EndData = field(46)
	s.StartBrk = field(47)
	s.ArgStart = field(48)
	s.ArgEnd = field(49)
	s.EnvStart = field(50)
	s.EnvEnd = field(51)
	if firstErr != nil {
		return Stat{}, fmt.Errorf("parsing stat: %w", firstErr)
	}
	return s, nil
}
