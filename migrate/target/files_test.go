package target

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

// A file that the process has opened since preflight must be the right one, as
// those that it had open by then must: the destination has another file of that
// path, perhaps with the same content.
func TestFilesOpenedSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	dump := resource.NewTreeDump(image.Host{}, resource.Readers{}, resource.NewDigests())
	file := func(change func(*image.Identity)) []image.File {
		f := image.File{Kind: image.FileRegular, Path: path, Identity: &image.Identity{
			Device: st.Dev, Inode: st.Ino, Mode: st.Mode, Bytes: st.Size, MTime: st.Mtim.Nano(),
		}}
		files := []image.File{f}
		if err := dump.AddDigests(t.Context(), files); err != nil {
			t.Fatal(err)
		}
		f.Identity.Inode++ // there
		if change != nil {
			change(f.Identity)
		}
		return files
	}
	same := file(nil)
	if len(same[0].Identity.Digest) == 0 {
		t.Fatal("it was not summed up")
	}
	for name, tt := range map[string]struct {
		before, now []image.File
		want        string // in the error
	}{
		"same content":           {nil, same, ""},
		"other content":          {nil, file(func(id *image.Identity) { id.Digest = []byte("other") }), "has other content"},
		"not summed up":          {nil, file(func(id *image.Identity) { id.Digest = nil }), "has other content"},
		"written":                {nil, file(func(id *image.Identity) { id.Written = true }), "the file there is another one"},
		"checked before":         {same, file(func(id *image.Identity) { id.Digest = nil }), ""},
		"changed since":          {same, file(func(id *image.Identity) { id.Digest, id.MTime = nil, id.MTime+1 }), "has other content"},
		"written since":          {same, file(func(id *image.Identity) { id.Written = true }), "the file there is another one"},
		"another one since":      {same, file(func(id *image.Identity) { id.Digest, id.Inode = nil, id.Inode+1 }), "has other content"},
		"written, bigger by now": {file(func(id *image.Identity) { id.Written = true }), file(func(id *image.Identity) { id.Written, id.Bytes = true, 100 }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Shell{
				host:    &Host{machine: image.Host{BootID: "here"}, digests: resource.NewDigests()},
				config:  Config{Inventory: &image.Image{Host: image.Host{BootID: "there"}}},
				checked: make(map[checkedFile]bool),
			}
			s.noteChecked(tt.before)
			err := s.checkFiles(t.Context(), tt.now, true)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v instead of %q", err, tt.want)
			}
		})
	}
}
