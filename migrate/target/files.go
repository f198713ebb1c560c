package target

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

// checkedFile is what must not have changed for a file that was checked once to
// be the right one still.
type checkedFile struct {
	path          string
	device, inode uint64
	written       bool
	bytes, mtime  int64 // of one that is only read: its content may have decided
}

func checkedFileOf(f *image.File) checkedFile {
	id := f.Identity
	c := checkedFile{path: f.Path, device: id.Device, inode: id.Inode, written: id.Written}
	if !id.Written && id.Mode&unix.S_IFMT == unix.S_IFREG {
		c.bytes, c.mtime = id.Bytes, id.MTime
	}
	return c
}

// noteChecked remembers the files that this host has in the right version.
func (s *Shell) noteChecked(files []image.File) {
	for i := range files {
		if files[i].Identity != nil {
			s.checked[checkedFileOf(&files[i])] = true
		}
	}
}

// checkFiles checks those that the process has opened or mapped since preflight
// as that has checked the others. frozen says that the process stands still.
func (s *Shell) checkFiles(ctx context.Context, files []image.File, frozen bool) error {
	c := s.host.newCheck(ctx, s.config.Inventory, s.config.Options)
	c.Frozen = frozen
	for i := range files {
		if f := &files[i]; f.Identity != nil && !s.checked[checkedFileOf(f)] {
			c.CheckFile(f)
		}
	}
	if err := blocked(c); err != nil {
		return err
	}
	s.noteChecked(files)
	return nil
}

// checkSockets checks the unix sockets of the image, and where its connections are at home: the process may have others by now than
// it had at preflight, and so may the host.
func (s *Shell) checkSockets(ctx context.Context, m *image.Image) error {
	c := s.host.newCheck(ctx, m, s.config.Options)
	c.Frozen = true
	for i := range m.Files {
		if m.Files[i].Kind == image.FileSocket {
			c.CheckFile(&m.Files[i])
		}
	}
	c.CheckHomes()
	return blocked(c)
}

func blocked(c *resource.Check) error {
	if len(c.Blockers) == 0 {
		return nil
	}
	var all []string
	for _, b := range c.Blockers {
		all = append(all, b.String())
	}
	return fmt.Errorf("since the process was looked at it has got what it cannot have here, or the host has changed: %s", strings.Join(all, "; "))
}
