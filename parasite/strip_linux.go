package parasite

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
)

// Strip takes the last memory of ours out of a launched process: its scratch
// memory, by a call that the leader makes from the vDSO. No calls can be made in
// the process after that; registers, vector states and signal masks can be set,
// and whatever the registers say of an interrupted system call holds after
// Detach.
func (p *Process) Strip(ctx context.Context) error {
	return p.tracer.Do(func() error {
		call := unmap(p.scratch.Code, ScratchBytes)
		if err := p.threads[p.pid].callPlainly(ctx, &call); err != nil {
			return err
		}
		p.scratch = Scratch{}
		return call.Err()
	})
}

// syscallInVDSO is the address of an instruction in the target that enters the kernel.
func (p *Process) syscallInVDSO() (uintptr, error) {
	path := fmt.Sprintf("/proc/%d/maps", p.pid)
	maps, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		m, err := parseMapping(line)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", path, err)
		}
		if m.name != "[vdso]" {
			continue
		}
		code := make([]byte, m.end-m.start)
		if err := p.ReadMemory(m.start, code); err != nil {
			return 0, err
		}
		if i := bytes.Index(code, syscallInstruction); i >= 0 {
			return m.start + uintptr(i), nil
		}
	}
	return 0, fmt.Errorf("process %d has no vDSO with a system call in it", p.pid)
}
