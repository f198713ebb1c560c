package resource

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// identity describes a file so that another host can tell whether its own
// file of that path is the same, or has the same content.
func (d *TreeDump) identity(link, path string, st *unix.Stat_t, written, mapped bool) (*image.Identity, error) {
	id := &image.Identity{
		Parent: parentOf(path, st.Dev),
		Device: st.Dev, Inode: st.Ino, Mode: st.Mode, Bytes: st.Size, MTime: st.Mtim.Nano(),
		Written: written, Mapped: mapped,
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(link, &fs); err != nil {
		return nil, fmt.Errorf("reading the file system of %s: %w", link, err)
	}
	id.FSType = fs.Type
	id.FSID = uint64(uint32(fs.Fsid.Val[0])) | uint64(uint32(fs.Fsid.Val[1]))<<32
	if handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, link, unix.AT_SYMLINK_FOLLOW); err == nil {
		id.Handle = handle.Bytes()
	}
	// Content decides only for files that are read, between hosts that do not see
	// the same file. To read it takes time: what has been read by now has to do.
	if !written && st.Mode&unix.S_IFMT == unix.S_IFREG {
		id.Digest = d.digests.cached(st)
	}
	return id, nil
}

// AddDigests sums up the files of an inventory that were not yet. It reads them,
// and is not to be called for large ones while the process stands still. What is another file by
// now is passed over.
func (d *TreeDump) AddDigests(ctx context.Context, files []image.File) error {
	for i := range files {
		f := &files[i]
		if f.Identity == nil || f.Identity.Written || f.Identity.Mode&unix.S_IFMT != unix.S_IFREG || len(f.Identity.Digest) > 0 {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(f.Path, &st) != nil || st.Dev != f.Identity.Device || st.Ino != f.Identity.Inode {
			continue
		}
		var err error
		if f.Identity.Digest, err = d.digests.of(ctx, f.Path, &st); err != nil {
			return fmt.Errorf("reading %s: %w", f.Path, err)
		}
	}
	return nil
}

// sumUp reads the files that a running process has open for reading and that were
// not met before, so that they are known when it stands still.
func (d *TreeDump) sumUp(ctx context.Context, p procfs.Process) error {
	fds, err := p.FDs()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		name := fmt.Sprintf("fd/%d", fd)
		link, err := p.Link(name)
		if err != nil || !strings.HasPrefix(link, "/") || d.summedUp[link] {
			continue // closed since, or nothing to read
		}
		d.summedUp[link] = true
		info, err := p.FDInfo(fd)
		if err != nil || info.Flags&unix.O_ACCMODE != unix.O_RDONLY && info.Flags&unix.O_PATH == 0 {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(p.Path(name), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		// One that cannot be read is not known; whether it has to be is not said yet.
		if _, err := d.digests.of(ctx, p.Path(name), &st); err != nil && ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// parentOf is the inode of the directory that a path is in, or 0 if that is on
// another device than the file itself.
func parentOf(path string, device uint64) uint64 {
	var st unix.Stat_t
	if unix.Stat(filepath.Dir(path), &st) != nil || st.Dev != device {
		return 0
	}
	return st.Ino
}

// changedSince reports whether a file that is not here, or another one here, is so
// at the source too, since it was looked at there: both hosts see the directory that
// it was in. Programs make, replace and remove files all the time. Should the process
// still have it open when it is frozen, it moves as a file without a name.
func (c *Check) changedSince(f *image.File) bool {
	if c.Frozen {
		return false
	}
	id := f.Identity
	var st unix.Stat_t
	var fs unix.Statfs_t
	dir := filepath.Dir(f.Path)
	if unix.Stat(dir, &st) != nil || unix.Statfs(dir, &fs) != nil || st.Ino != id.Parent {
		return false
	}
	if c.Source.BootID == c.Host.BootID {
		return st.Dev == id.Device
	}
	return networkFileSystems[id.FSType] && fs.Type == id.FSType
}

// Digests remembers the digests of files. It may be shared among goroutines.
type Digests struct {
	mu    sync.Mutex
	known map[digestKey][]byte
}

// NewDigests starts with none.
func NewDigests() *Digests { return &Digests{known: make(map[digestKey][]byte)} }

// digestKey changes whenever a file's content does.
type digestKey struct {
	fileID
	size         int64
	mtime, ctime int64
}

// Files that are larger than this must be seen by both hosts to count as equal.
const maxDigested = 1 << 30

// cached returns the SHA-256 of a file if it is known.
func (d *Digests) cached(st *unix.Stat_t) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[digestKeyOf(st)]
}

func digestKeyOf(st *unix.Stat_t) digestKey {
	return digestKey{idOf(st), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// Files that are larger than this are not read while the process stands still.
const maxFrozenDigested = 8 << 20

// of returns the SHA-256 of a file, or nothing for one that is too large.
func (d *Digests) of(ctx context.Context, path string, st *unix.Stat_t) ([]byte, error) {
	if st.Size > maxDigested {
		return nil, nil
	}
	if sum := d.cached(st); sum != nil {
		return sum, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	hash := sha256.New()
	// No further than it was long: some that seem empty never end (tracefs).
	for rest := st.Size; rest > 0; {
		n, err := io.CopyN(hash, file, min(rest, 1<<20))
		rest -= n
		switch {
		case errors.Is(err, io.EOF):
			rest = 0
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
	}
	sum := hash.Sum(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[digestKeyOf(st)] = sum
	return sum, nil
}

// networkFileSystems are those whose files several hosts see, by the magic
// numbers of statfs(2).
var networkFileSystems = map[int64]bool{
	0x6969: true, 0xff534d42: true, 0xfe534d42: true, 0x517b: true, // NFS, CIFS, SMB2, SMB
	0x00c36400: true, 0x0bd00bd0: true, 0x01021997: true, 0x5346414f: true, // Ceph, Lustre, 9P, AFS
	0x01161970: true, 0x7461636f: true, // GFS2, OCFS2
}

// sameFile reports whether two identities are of one file that both hosts see:
// by a network file system, or because the hosts share a kernel.
func sameFile(source, here *image.Host, theirs, own *image.Identity) bool {
	if source.BootID == here.BootID {
		return theirs.Device == own.Device && theirs.Inode == own.Inode
	}
	return networkFileSystems[theirs.FSType] && theirs.FSType == own.FSType && theirs.Inode == own.Inode &&
		len(theirs.Handle) > 0 && string(theirs.Handle) == string(own.Handle)
}

// checkIdentity compares a file of the source's with the one that this host
// has at the same path.
func checkIdentity(c *Check, f *image.File) {
	own, err := c.ownIdentity(f)
	if errors.Is(err, os.ErrNotExist) && c.changedSince(f) {
		return
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		c.Block(migrate.CodeFileMissing, "install it there, or share the file system", "%s", f.Path)
		return
	}
	if err != nil {
		c.Block(migrate.CodeFileMissing, "make it accessible to the agent there", "%s: %v", f.Path, err)
		return
	}
	id := f.Identity
	switch {
	case id.Mode&unix.S_IFMT != own.Mode&unix.S_IFMT:
		c.Block(migrate.CodeFileDiffers, "make it the same there", "%s is another kind of file", f.Path)
	case sameFile(&c.Source, &c.Host, id, own), id.Mode&unix.S_IFMT != unix.S_IFREG, c.changedSince(f):
	case id.Written:
		c.Block(migrate.CodeFileNotShared, "put it on a file system that both hosts see", "%s is written by the process, and the file there is another one", f.Path)
	case id.Bytes != own.Bytes || len(id.Digest) == 0 || string(id.Digest) != string(own.Digest):
		c.Block(migrate.CodeFileDiffers, "install the same version there", "%s has other content", f.Path)
	}
}

// ownIdentity describes the file that this host has at a path.
func (c *Check) ownIdentity(f *image.File) (*image.Identity, error) {
	var st unix.Stat_t
	stat := unix.Stat
	if f.Flags&unix.O_NOFOLLOW != 0 {
		stat = unix.Lstat
	}
	if err := stat(f.Path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Path, Err: err}
	}
	id := &image.Identity{Device: st.Dev, Inode: st.Ino, Mode: st.Mode, Bytes: st.Size}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.Path, &fs); err != nil {
		return nil, err
	}
	id.FSType = fs.Type
	if handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, f.Path, unix.AT_SYMLINK_FOLLOW); err == nil {
		id.Handle = handle.Bytes()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || f.Identity.Written || sameFile(&c.Source, &c.Host, f.Identity, id) ||
		len(f.Identity.Digest) == 0 || st.Size != f.Identity.Bytes || c.Frozen && st.Size > maxFrozenDigested {
		return id, nil // it is the same, or another one, whatever is in it
	}
	var err error
	id.Digest, err = c.Digests.of(c.Ctx, f.Path, &st)
	return id, err
}
