package resource

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// pipeEnd: one end of a pipe(2). Both ends are made together; one that nobody
// holds is closed when everything is in place.
var pipeEnd = fileKind{
	dump: func(d *ProcessDump, o *openFile, f *image.File) error {
		if index, ok := d.pipes[o.st.Ino]; ok {
			f.Pipe = index
		} else {
			f.Pipe = len(d.image.Pipes)
			d.pipes[o.st.Ino] = f.Pipe
			d.image.Pipes = append(d.image.Pipes, image.Pipe{})
		}
		fd, err := o.borrow()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		p := &d.image.Pipes[f.Pipe]
		if p.Bytes, err = unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err != nil {
			return fmt.Errorf("reading its capacity: %w", err)
		}
		if p.Bytes > mostPipe() {
			d.Degrade(d.AllowDegraded, migrate.CodePrivilege, "raise fs.pipe-max-size, or give the agent CAP_SYS_RESOURCE",
				"%v, a pipe of %d bytes, this agent may copy %d of them", o, p.Bytes, mostPipe())
		}
		if f.Flags&unix.O_ACCMODE == unix.O_WRONLY || p.Content != nil || d.Inspect {
			return nil
		}
		p.Content, err = pipeContent(fd, p.Bytes)
		return err
	},
	check: func(c *Check, f *image.File) {
		if p := &c.Image.Pipes[f.Pipe]; p.Bytes > mostPipe() {
			c.Degrade(c.AllowDegraded, migrate.CodePrivilege, "raise fs.pipe-max-size there, or give the agent CAP_SYS_RESOURCE",
				"a pipe of %d bytes, the agent there may make them of %d, into which its content has to fit", p.Bytes, mostPipe())
		}
	},
	open: func(r *TreeRestore, f *image.File) (int, error) {
		ends, err := r.pipe(f.Pipe)
		if err != nil {
			return 0, err
		}
		which := 0
		if f.Flags&unix.O_ACCMODE == unix.O_WRONLY {
			which = 1
		}
		end := ends[which]
		if used := (pipeUse{f.Pipe, which}); !r.pipesUsed[used] {
			r.pipesUsed[used] = true
			fd, err := unix.FcntlInt(uintptr(end), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return 0, err
			}
			return fd, setStatusFlags(fd, f.Flags)
		}
		// Another description of the same end.
		// Packet mode (O_DIRECT) can be set but not asked for at opening.
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", end), f.Flags&^unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
}

// pipeUse is one end of a pipe.
type pipeUse struct {
	pipe image.Index
	end  int
}

// mostPipe is the largest pipe that this process may make (pipe(7)).
func mostPipe() int {
	if ownCapabilities()&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return math.MaxInt
	}
	text, err := os.ReadFile("/proc/sys/fs/pipe-max-size")
	if err != nil {
		return math.MaxInt
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return math.MaxInt
	}
	return most
}

// pipeContent reads what is in a pipe and leaves it there: tee(2) makes
// references in another pipe, which is then read.
func pipeContent(fd, capacity int) ([][]byte, error) {
	return copyOfPipe(fd, min(capacity, mostPipe()))
}

// copyOfPipe is pipeContent by way of a pipe of this size.
func copyOfPipe(fd, size int) ([][]byte, error) {
	var copied [2]int
	if err := unix.Pipe2(copied[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	defer unix.Close(copied[0])
	defer unix.Close(copied[1])
	if _, err := unix.FcntlInt(uintptr(copied[1]), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, fmt.Errorf("making a pipe of %d bytes: %w", size, err)
	}
	n, err := unix.Tee(fd, copied[1], math.MaxInt32, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("copying what is in the pipe: %w", err)
	}
	// Pieces take pages, of which the copy may have fewer.
	if held, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || int64(held) != n {
		return nil, errors.Join(err, fmt.Errorf("%d of %d bytes in a pipe fit into one of %d: raise fs.pipe-max-size, or give the agent CAP_SYS_RESOURCE", n, held, size))
	}
	var content [][]byte
	for {
		buf := make([]byte, size)
		n, err := unix.Read(copied[0], buf)
		if errors.Is(err, unix.EAGAIN) {
			return content, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading what is in the pipe: %w", err)
		}
		content = append(content, buf[:n:n])
	}
}

// inPackets reports whether a pipe is written packet by packet: another write
// must not be joined with what is in it.
func (r *TreeRestore) inPackets(index image.Index) bool {
	return slices.ContainsFunc(r.Image.Files, func(f image.File) bool {
		return f.Kind == image.FilePipe && f.Pipe == index && f.Flags&unix.O_DIRECT != 0
	})
}

// pipe makes a pipe with its content, once.
func (r *TreeRestore) pipe(index image.Index) ([2]int, error) {
	if ends, ok := r.pipes[index]; ok {
		return ends, nil
	}
	p := &r.Image.Pipes[index]
	var ends [2]int
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	if len(p.Content) > 1 || len(p.Content) == 1 && len(p.Content[0]) <= image.PageSize && r.inPackets(index) {
		flags |= unix.O_DIRECT // packet by packet
	}
	if err := unix.Pipe2(ends[:], flags); err != nil {
		return ends, err
	}
	r.pipes[index] = ends
	// Less than it had has been accepted at preflight.
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, min(p.Bytes, mostPipe())); err != nil {
		return ends, fmt.Errorf("making a pipe of %d bytes: %w", p.Bytes, err)
	}
	for _, piece := range p.Content {
		if n, err := unix.Write(ends[1], piece); err != nil || n != len(piece) {
			return ends, errors.Join(err, fmt.Errorf("filling a pipe that had %d bytes: %d of %d written", p.Bytes, n, len(piece)))
		}
	}
	return ends, nil
}
