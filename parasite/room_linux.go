package parasite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A room is a stretch of zero bytes in an executable mapping of the target
// that nothing uses: the rest of the page behind the image of the vDSO or of a
// program's code. The executor stands there while the target has no memory of
// ours. It can be written (/proc/PID/mem reaches through the protection of a
// private mapping and makes a private copy of the page) but not by the target.
type room struct {
	addr uintptr
}

// Calls that fit into a room at once.
const roomCalls = 2

// roomBytes is what the executor, its slots and its calls need.
func roomBytes() int {
	return len(executorCode()) + int(slotsSize) + roomCalls*int(callSize)
}

// ErrNoRoom says that no executable mapping of the target has room for the executor.
var ErrNoRoom = errors.New("no room for remote calls in any executable mapping")

// findRoom looks for room, in the vDSO first: every process has one, and no
// file is behind it.
func (p *Process) findRoom() error {
	if p.room.addr != 0 {
		return nil
	}
	path := "/proc/" + strconv.Itoa(p.pid) + "/maps"
	maps, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var candidates []mapping
	for line := range strings.Lines(string(maps)) {
		m, err := parseMapping(line)
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		switch {
		case m.name == "[vsyscall]" || !m.executable || m.shared:
		case m.name == "[vdso]":
			candidates = append([]mapping{m}, candidates...)
		default:
			candidates = append(candidates, m)
		}
	}
	for _, m := range candidates {
		addr, ok := p.tailRoom(m)
		if ok {
			p.room.addr = addr
			return nil
		}
	}
	return fmt.Errorf("process %d: %w", p.pid, ErrNoRoom)
}

// A mapping is what findRoom needs of a line of /proc/PID/maps.
type mapping struct {
	start, end         uintptr
	executable, shared bool
	name               string
}

func parseMapping(line string) (mapping, error) {
	fields := strings.Fields(line)
	if len(fields) < 5 || len(fields[1]) < 4 {
		return mapping{}, fmt.Errorf("line %q", line)
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err := errors.Join(err1, err2); err != nil {
		return mapping{}, fmt.Errorf("line %q: %w", line, err)
	}
	if start >= end {
		return mapping{}, fmt.Errorf("line %q: it ends before it begins", line)
	}
	m := mapping{
		start: uintptr(start), end: uintptr(end),
		executable: fields[1][2] == 'x', shared: fields[1][3] == 's',
	}
	if len(fields) > 5 {
		m.name = fields[5]
	}
	return m, nil
}

// tailRoom finds the zero bytes at the end of a mapping.
func (p *Process) tailRoom(m mapping) (uintptr, bool) {
	need := roomBytes()
	page := make([]byte, os.Getpagesize())
	if m.end-m.start < uintptr(len(page)) || p.ReadMemory(m.end-uintptr(len(page)), page) != nil {
		return 0, false
	}
	used := len(bytes.TrimRight(page, "\x00"))
	if m.name == "[vdso]" {
		// What follows the loaded part are section headers that nobody reads at
		// run time, but they are not zero; leave them alone all the same.
		used = max(used, p.imageEnd(m)-int(m.end-m.start)+len(page))
	}
	// Keep the distance of a cache line from what is used.
	start := (max(used, 0) + 63) &^ 63
	if len(page)-start < need {
		return 0, false
	}
	return m.end - uintptr(len(page)) + uintptr(start), true
}

// imageEnd is the size of an ELF image with its section headers.
func (p *Process) imageEnd(m mapping) int {
	header := make([]byte, elfHeaderBytes)
	if p.ReadMemory(m.start, header) != nil {
		return 0
	}
	return elfEnd(header, uint64(m.end-m.start))
}

const elfHeaderBytes = 64

// elfEnd is the size that an ELF header tells of, 0 if it makes no sense in so
// many bytes.
func elfEnd(header []byte, limit uint64) int {
	if !bytes.HasPrefix(header, []byte("\x7fELF")) {
		return 0
	}
	// e_shoff, e_shentsize, e_shnum of Elf64_Ehdr (elf(5)).
	offset := binary.LittleEndian.Uint64(header[0x28:])
	size := uint64(binary.LittleEndian.Uint16(header[0x3a:])) * uint64(binary.LittleEndian.Uint16(header[0x3c:]))
	if offset > limit {
		return 0
	}
	return int(offset + size)
}

// callInRoom makes up to roomCalls system calls that need no memory.
func (t *Thread) callInRoom(ctx callContext, calls []Call) error {
	p := t.process
	mask, err := t.SignalMask()
	if err != nil {
		return err
	}
	if err := p.findRoom(); err != nil {
		return err
	}
	code := executorCode()
	content := make([]byte, roomBytes())
	copy(content, code)
	array := content[len(code)+int(slotsSize):]
	for i := range calls {
		copy(array[i*int(callSize):], bytesOf(&callABI{nr: calls[i].Nr, args: calls[i].Args}))
	}
	back := t.beforeCall()
	slots := slotsFor(&back, mask)
	copy(content[len(code):], bytesOf(&slots))
	if err := p.WriteMemory(p.room.addr, content); err != nil {
		return err
	}
	e := execution{
		code:  p.room.addr,
		slots: p.room.addr + uintptr(len(code)),
		calls: p.room.addr + uintptr(len(code)) + slotsSize,
		mask:  mask,
	}
	err = t.follow(ctx, e, calls)
	clear(content)
	return errors.Join(err, p.WriteMemory(p.room.addr, content))
}

// failed is the error in the result of a system call, or 0.
func failed(result uintptr) unix.Errno {
	if e := -int64(result); e > 0 && e < 4096 {
		return unix.Errno(e)
	}
	return 0
}
