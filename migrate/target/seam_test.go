package target_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pagurus-project/pagurus/migrate"
)

// seamProgram has places of eight pages. Each is now two mappings with a gap
// between them, now one that has grown over the gap and where the other one was,
// and changes all the time. What is one mapping can be resized as one. Some have a
// neighbour that differs by its protection only, in others the two do not count
// as committed memory alike.
const seamProgram = `
import ctypes, os, random, sys, time
dir = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
for f in libc.mmap, libc.mremap: f.restype = ctypes.c_void_p
PAGE, FAILED = 4096, ctypes.c_void_p(-1).value
def call(f, *args):
    result = f(*[ctypes.c_void_p(a) for a in args])
    if result in (-1, FAILED): raise OSError(ctypes.get_errno(), f.__name__)
    return result
NORESERVE = 0x4000
def new(addr, pages, flags=0): # readable, writable; private, anonymous, at this address
    call(libc.mmap, addr, pages * PAGE, 3, 0x32 | flags, -1, 0)
def touch(addr, pages, value):
    for page in range(pages): ctypes.c_char.from_address(addr + page * PAGE).value = value
places = []
for n in range(96):
    # With room around it: no neighbour is to be joined with it.
    at = call(libc.mmap, 0, 24 * PAGE, 0, 0x22, -1, 0)
    call(libc.munmap, at, 24 * PAGE)
    p = dict(at=at + 8 * PAGE, one=True, flags=NORESERVE if n % 3 == 1 else 0)
    places.append(p)
    if n % 3 == 2:
        new(p["at"] - 2 * PAGE, 2); touch(p["at"] - 2 * PAGE, 2, b"n")
        call(libc.mprotect, p["at"] - 2 * PAGE, 2 * PAGE, 1)
    new(p["at"], 8)
def flip(p):
    at = p["at"]
    if p["one"]:
        call(libc.munmap, at, 8 * PAGE)
        new(at, 2, p["flags"]); touch(at, 2, b"a")
        new(at + 4 * PAGE, 4); touch(at + 4 * PAGE, 4, b"b")
    else:
        call(libc.munmap, at + 4 * PAGE, 4 * PAGE)
        call(libc.mremap, at, 2 * PAGE, 8 * PAGE, 0)
        touch(at + 2 * PAGE, 6, b"c")
    p["one"] = not p["one"]
def check(p):
    content = b"".join(ctypes.string_at(p["at"] + page * PAGE, 1) for page in range(8)) if p["one"] else b""
    if p["one"] and content != b"aacccccc": raise Exception("content %r" % content)
    if p["one"]: call(libc.mremap, p["at"], 8 * PAGE, 12 * PAGE, 1)
for p in places: flip(p); flip(p)
open(dir + "/ready", "w").close()
while not os.path.exists(dir + "/check"):
    flip(random.choice(places))
    time.sleep(0.0005)
said = []
for p in places:
    try: check(p)
    except Exception as e: said.append("%x: %s" % (p["at"], e))
with open(dir + "/new", "w") as f: f.write("\n".join(said) or "fine")
os.rename(dir + "/new", dir + "/result")
time.sleep(1000)
`

// What has become one mapping while the rounds went on is one mapping, whatever
// the shell had there.
func TestSeams(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	host := newSource(t)
	dir := t.TempDir()
	exists := func(name string) func() bool {
		return func() bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil
		}
	}
	pid := startProgram(t, filepath.Join(dir, "log"), python, "-c", seamProgram, dir)
	await(t, exists("ready"))
	options := migrate.Options{Verify: true}.WithDefaults()
	options.MaxDowntime = 1 // as many rounds as may be
	move(t, host, pid, options)
	if err := os.WriteFile(filepath.Join(dir, "check"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, exists("result"))
	if said := read(t, filepath.Join(dir, "result")); said != "fine" {
		t.Errorf("the program says:\n%s", said)
	}
}
