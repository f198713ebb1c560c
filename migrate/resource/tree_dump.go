package resource

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// A TreeDump is what is known at the source of a tree over the whole time of
// its migration. Objects and the files behind mappings keep their place in the
// image from round to round; they only become more.
type TreeDump struct {
	*Findings
	AllowDegraded bool
	// Inspect says that this is a preflight: nothing is done to the process that
	// could disturb it.
	Inspect bool
	// Addresses are the service addresses that go along, or may.
	Addresses []netip.Prefix

	host    image.Host
	readers Readers
	digests *Digests

	image       *image.Image // being taken
	mapped      []image.File // behind mappings, at the beginning of image.Files
	mappedIndex map[mappedKey]image.Index
	flags       map[int]map[uint64]procfs.VMFlags // of mappings by their start, as last read, by process
	objects     []image.Object
	objectFiles []*os.File // an open file of each object, to read it
	objectIndex map[fileID]image.Index
	summedUp    map[string]bool // files that were open, by their links
	sharing     *sharing
	settings    tcprepair.Settings // of the image being taken
	network     uint64             // the cookie of our network namespace; 0: not asked yet
	waits       waits
	outsiders   outsiders
	clocksRead  time.Time              // when the image's clocks were read
	pipes       map[uint64]image.Index // of the image being taken, by inode
	sockets     map[uint32]unixEnd     // likewise
	open        map[string][]*openFile // descriptions of the image being taken, each once, by what /proc says they are
}

// fileID identifies a file on this host.
type fileID struct{ device, inode uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino} }

// mappedKey identifies the file behind a mapping as the destination will open it.
type mappedKey struct {
	fileID
	path  string
	write bool
}

// Readers read what the kernel does not show in files.
type Readers struct {
	Flags  *procfs.FlagReader
	Sleeps *procfs.SleepReader
	// Both or none: what descriptors of sockets show at once.
	Descriptors *procfs.DescriptorReader
	Sockets     *tcprepair.Layout
}

// NewTreeDump starts with nothing known. The readers and the digests may be
// shared among dumps.
func NewTreeDump(host image.Host, readers Readers, digests *Digests) *TreeDump {
	return &TreeDump{
		Findings: &Findings{}, host: host, readers: readers, digests: digests,
		mappedIndex: make(map[mappedKey]image.Index), flags: make(map[int]map[uint64]procfs.VMFlags), summedUp: make(map[string]bool),
		objectIndex: make(map[fileID]image.Index),
	}
}

// Close closes the files of the objects, and ends what was made for threads to
// look at.
func (d *TreeDump) Close() error {
	errs := []error{d.outsiders.close()}
	for _, f := range d.objectFiles {
		errs = append(errs, f.Close())
	}
	d.objectFiles = nil
	return errors.Join(errs...)
}

// Object is an object and an open file to read it by.
type Object struct {
	image.Object
	File *os.File
}

// Objects lists all objects that were ever met.
func (d *TreeDump) Objects() []Object {
	all := make([]Object, len(d.objects))
	for i := range all {
		all[i] = Object{d.objects[i], d.objectFiles[i]}
	}
	return all
}

// Spaces of processes are numbered from processSpace on, those of objects from
// objectSpace on.
const (
	processSpace = 1
	objectSpace  = 1 << 20
)

// Layout reads how the address spaces of running processes look.
func (d *TreeDump) Layout(ctx context.Context, round int, pids []int) (*image.Layout, error) {
	l := &image.Layout{Round: round}
	for i, pid := range pids {
		p := procfs.Process{PID: pid}
		mappings, err := d.mappings(p)
		if err != nil {
			return nil, err
		}
		threads, err := p.Threads()
		if err != nil {
			return nil, err
		}
		if err := d.findObjects(p); err != nil {
			return nil, err
		}
		if err := d.sumUp(ctx, p); err != nil {
			return nil, err
		}
		l.Processes = append(l.Processes, image.ProcessState{PID: pid, Space: processSpace + uint32(i), Mappings: mappings, Threads: leaderFirst(pid, threads)})
	}
	if err := d.AddDigests(ctx, d.mapped); err != nil {
		return nil, err
	}
	l.Files, l.Objects = slices.Clone(d.mapped), slices.Clone(d.objects)
	return l, nil
}

func leaderFirst(pid int, tids []int) []int {
	if i := slices.Index(tids, pid); i > 0 {
		tids = slices.Insert(slices.Delete(tids, i, i+1), 0, pid)
	}
	return tids
}

// Dump takes the image of processes whose threads are all stopped. It makes
// remote calls in them and has released its memory there when it returns.
func (d *TreeDump) Dump(ctx context.Context, stopped []*parasite.Process) (*image.Image, error) {
	d.image = &image.Image{Version: image.Version, Host: d.host}
	d.settings = make(tcprepair.Settings)
	d.pipes, d.sockets, d.open = make(map[uint64]image.Index), make(map[uint32]unixEnd), make(map[string][]*openFile)
	for i, target := range stopped {
		d.image.Processes = append(d.image.Processes, image.Process{PID: target.PID()})
		p := &d.image.Processes[i]
		p.Memory.Space, p.Memory.Exe = processSpace+uint32(i), image.None
		for _, tid := range leaderFirst(target.PID(), target.ThreadIDs()) {
			p.Threads = append(p.Threads, image.Thread{TID: tid})
		}
	}
	// The mappings come first: later ours are among them.
	for i, target := range stopped {
		p, mem := procfs.Process{PID: target.PID()}, &d.image.Processes[i].Memory
		var err error
		if mem.Mappings, err = d.mappings(p); err != nil {
			return nil, err
		}
		if mem.Exe, err = d.executable(p); err != nil {
			return nil, err
		}
	}
	d.image.Files = slices.Clone(d.mapped)
	if err := d.readClocks(stopped[0].PID()); err != nil {
		return nil, err
	}
	for i, target := range stopped {
		pd := &ProcessDump{TreeDump: d, Ctx: ctx, Proc: procfs.Process{PID: target.PID()}, Target: target, Process: &d.image.Processes[i]}
		err := target.Tracer().Do(pd.run)
		if err = errors.Join(err, target.ReleaseScratch(ctx)); err != nil {
			return nil, err
		}
	}
	d.image.Objects = slices.Clone(d.objects)
	return d.image, d.checkStaying()
}

// CheckProcess looks for what concerns a process as a whole.
func (d *TreeDump) CheckProcess(pid int) error {
	p := procfs.Process{PID: pid}
	children, err := p.Children()
	if err != nil {
		return err
	}
	if len(children) > 0 {
		d.Block(migrate.CodeChildren, "wait until they have ended: trees of processes cannot move yet", "process %d has child processes: %v", pid, children)
	}
	return nil
}
