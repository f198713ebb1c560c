package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// Each of these is one mistake in an image that is valid otherwise.
func TestValidate(t *testing.T) {
	if err := sample().Validate(); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", maxPath+1)
	type in struct {
		m   *Image
		p   *Process
		mem *Memory
		t   *Thread
	}
	for _, test := range []struct {
		name  string
		spoil func(in)
	}{
		{"no processes", func(b in) { b.m.Processes = nil }},
		{"a negative number of ended connections", func(b in) { b.m.TimeWaits.Others = -1 }},
		{"too many ended connections", func(b in) { b.m.TimeWaits.All = make([]tcprepair.TimeWait, MaxTimeWaits+1) }},

		{"object of no kind", func(b in) { b.m.Objects[0].Kind = "" }},
		{"object too large", func(b in) { b.m.Objects[0].Bytes = 1<<62 + 1 }},
		{"object with a NUL in its name", func(b in) { b.m.Objects[0].Name = "a\x00b" }},
		{"object with a long name", func(b in) { b.m.Objects[0].Name = long }},
		{"deleted file without a path", func(b in) { b.m.Objects[2].Name = "relative" }},
		{"object without a space", func(b in) { b.m.Objects[0].Space = 0 }},
		{"two objects in one space", func(b in) { b.m.Objects[0].Space = b.m.Objects[1].Space }},
		{"object and process in one space", func(b in) { b.m.Objects[0].Space = b.mem.Space }},

		{"file of no kind", func(b in) { b.m.Files[0].Kind = "" }},
		{"negative position", func(b in) { b.m.Files[2].Position = -1 }},
		{"regular file without identity", func(b in) { b.m.Files[0].Identity = nil }},
		{"empty path", func(b in) { b.m.Files[0].Path = "" }},
		{"relative path", func(b in) { b.m.Files[0].Path = "usr/bin" }},
		{"path that climbs", func(b in) { b.m.Files[0].Path = "/usr/../etc" }},
		{"path with a NUL", func(b in) { b.m.Files[0].Path = "/usr\x00" }},
		{"long path", func(b in) { b.m.Files[0].Path = "/" + long }},
		{"device by relative path", func(b in) { b.m.Files[9].Path = "null" }},
		{"descriptor of no pipe", func(b in) { b.m.Files[1].Pipe = 1 }},
		{"descriptor of a pipe before the first", func(b in) { b.m.Files[1].Pipe = None }},
		{"descriptor of no object", func(b in) { b.m.Files[2].Object = 3 }},
		{"descriptor of no socket", func(b in) { b.m.Files[3].Socket = 2 }},
		{"eventfd without its part", func(b in) { b.m.Files[4].Event = nil }},
		{"timerfd without its part", func(b in) { b.m.Files[5].Timer = nil }},
		{"timerfd into the past", func(b in) { b.m.Files[5].Timer.Value = -1 }},
		{"timerfd with a negative interval", func(b in) { b.m.Files[5].Timer.Interval = -1 }},
		{"inotify without its part", func(b in) { b.m.Files[6].Inotify = nil }},
		{"inotify watch 0", func(b in) { b.m.Files[6].Inotify.Watches[0].Number = 0 }},
		{"inotify watch on nothing", func(b in) { b.m.Files[6].Inotify.Watches[0].Path = "" }},
		{"epoll of a file that is not there", func(b in) { b.m.Files[7].Epoll[0].File = len(b.m.Files) }},
		{"epoll of a negative descriptor", func(b in) { b.m.Files[7].Epoll[0].FD = -1 }},
		{"POSIX lock of a description", func(b in) { b.m.Files[0].Locks[0].Kind = LockPOSIX }},
		{"lock before the file", func(b in) { b.m.Files[0].Locks[0].Start = -1 }},
		{"lock of negative length", func(b in) { b.m.Files[0].Locks[0].Len = -1 }},

		{"pipe of negative size", func(b in) { b.m.Pipes[0] = Pipe{Bytes: -1} }},
		{"pipe too large", func(b in) { b.m.Pipes[0].Bytes = maxPipe + 1 }},
		{"pipe that holds more than it can", func(b in) { b.m.Pipes[0].Bytes = 2 }},
		{"socket with a peer that is not there", func(b in) { b.m.Sockets[0].Peer = 2 }},
		{"passed file that is not there", func(b in) { b.m.Sockets[0].Queue[0].Passed = []Index{len(b.m.Files)} }},
		{"more passed than can be", func(b in) { b.m.Sockets[0].Queue[0].Passed = make([]Index, 254) }},
		{"passed file -1", func(b in) { b.m.Sockets[0].Queue[0].Passed = []Index{None} }},
		{"accepted socket without a name", func(b in) { b.m.Sockets[0].Accepted = true }},
		{"accepted socket with a path", func(b in) { b.m.Sockets[0].Accepted, b.m.Sockets[0].Name = true, []byte("/x") }},
		{"accepted socket without a connection", func(b in) {
			b.m.Sockets[0].Accepted, b.m.Sockets[0].Name, b.m.Sockets[0].Peer = true, []byte("\x00x"), None
		}},
		{"both ends accepted", func(b in) {
			for i := range b.m.Sockets {
				b.m.Sockets[i].Accepted, b.m.Sockets[i].Name = true, []byte("\x00x")
			}
		}},
		{"socket with peer -2", func(b in) { b.m.Sockets[0].Peer = -2 }},

		{"process without threads", func(b in) { b.p.Threads = nil }},
		{"leader is not the first thread", func(b in) { b.p.Threads[0].TID, b.p.Threads[1].TID = 813, 812 }},
		{"init", func(b in) { b.p.PID, b.t.TID = 1, 1 }},
		{"thread beyond the last id", func(b in) { b.p.Threads[1].TID = maxID }},
		{"thread twice", func(b in) { b.p.Threads[1].TID = b.t.TID }},
		{"process twice", func(b in) {
			second := *b.p
			second.Memory.Space = 9
			b.m.Processes = append(b.m.Processes, second)
		}},
		{"two processes in one space", func(b in) {
			second := *b.p
			second.PID, second.Threads = 900, []Thread{{TID: 900}}
			b.m.Processes = append(b.m.Processes, second)
		}},
		{"process without a space", func(b in) { b.mem.Space = 0 }},
		{"relative root", func(b in) { b.p.Root = "." }},
		{"no working directory", func(b in) { b.p.Cwd = "" }},
		{"descriptors out of order", func(b in) { b.p.Descriptors[1].FD = 9 }},
		{"descriptor twice", func(b in) { b.p.Descriptors[1].FD = 0 }},
		{"negative descriptor", func(b in) { b.p.Descriptors[0].FD = -1 }},
		{"descriptor too large", func(b in) { b.p.Descriptors[2].FD = maxFD }},
		{"descriptor of no file", func(b in) { b.p.Descriptors[2].File = len(b.m.Files) }},
		{"descriptor of file -1", func(b in) { b.p.Descriptors[2].File = None }},
		{"flock of a process", func(b in) { b.p.Locks[0].Kind = LockFlock }},
		{"lock of no file", func(b in) { b.p.Locks[0].File = len(b.m.Files) }},
		{"action of signal 0", func(b in) { b.p.Actions[0].Signal = 0 }},
		{"action of signal 65", func(b in) { b.p.Actions[0].Signal = 65 }},
		{"short siginfo", func(b in) { b.p.Pending[0] = b.p.Pending[0][:127] }},
		{"interval timer 3", func(b in) { b.p.IntervalTimers[0].Which = 3 }},
		{"interval timer into the past", func(b in) { b.p.IntervalTimers[0].Value = -1 }},
		{"interval timer with a negative interval", func(b in) { b.p.IntervalTimers[0].Interval = -1 }},
		{"timer -1", func(b in) { b.p.Timers[0].ID = -1 }},
		{"timer into the past", func(b in) { b.p.Timers[0].Value = -1 }},
		{"too many limits", func(b in) { b.p.Limits = make([]Limit, 65) }},
		{"too many switches", func(b in) { b.p.Switches = make([]Switch, 65) }},

		{"executable that is not there", func(b in) { b.mem.Exe = len(b.m.Files) }},
		{"executable -2", func(b in) { b.mem.Exe = -2 }},
		{"guard of half a page", func(b in) { b.mem.Guards[0].End-- }},
		{"long auxiliary vector", func(b in) { b.mem.Auxv = make([]byte, 16*64+1) }},
		{"mapping that is empty", func(b in) { b.mem.Mappings[0].End = b.mem.Mappings[0].Start }},
		{"mapping that ends before it starts", func(b in) { b.mem.Mappings[0].End = PageSize }},
		{"mapping that starts inside a page", func(b in) { b.mem.Mappings[0].Start++ }},
		{"mapping that ends inside a page", func(b in) { b.mem.Mappings[0].End++ }},
		{"mapping beyond user space", func(b in) { b.mem.Mappings[3].End = maxAddress + PageSize }},
		{"mappings that overlap", func(b in) { b.mem.Mappings[0].End = b.mem.Mappings[1].Start + PageSize }},
		{"mappings out of order", func(b in) {
			b.mem.Mappings[0], b.mem.Mappings[1] = b.mem.Mappings[1], b.mem.Mappings[0]
		}},
		{"mapping with protection 8", func(b in) { b.mem.Mappings[0].Prot = 8 }},
		{"mapping with an unknown flag", func(b in) { b.mem.Mappings[0].Flags = flagsEnd }},
		{"mapping of a file from inside a page", func(b in) { b.mem.Mappings[0].Offset = 1 }},
		{"mapping of a file beyond its end", func(b in) { b.mem.Mappings[0].Offset = 1<<62 + PageSize }},
		{"mapping with a long name", func(b in) { b.mem.Mappings[1].Name = long }},
		{"mapping with a NUL in its name", func(b in) { b.mem.Mappings[1].Name = "\x00" }},
		{"mapping of nothing", func(b in) { b.mem.Mappings[0].Backing = "" }},
		{"shared mapping of nothing in particular", func(b in) { b.mem.Mappings[1].Shared = true }},
		{"mapping of no file", func(b in) { b.mem.Mappings[0].File = len(b.m.Files) }},
		{"mapping of file -1", func(b in) { b.mem.Mappings[0].File = None }},
		{"mapping of no object", func(b in) { b.mem.Mappings[2].Object = len(b.m.Objects) }},
		{"special mapping with a common name", func(b in) { b.mem.Mappings[3].Name = "vdso" }},
		{"fresh range outside of its mapping", func(b in) { b.mem.Mappings[1].Fresh = []AddressRange{{0x5ff000, 0x601000}} }},
		{"fresh range of half a page", func(b in) { b.mem.Mappings[1].Fresh = []AddressRange{{0x600000, 0x600800}} }},

		{"thread with a long name", func(b in) { b.t.Name = "sixteen letters!" }},
		{"too much vector state", func(b in) { b.t.XState = make([]byte, maxXState+1) }},
		{"too many processors", func(b in) { b.t.Affinity = make([]byte, 1025) }},
		{"too many groups", func(b in) { b.t.Credentials.Groups = make([]uint32, 65537) }},
		{"empty filter", func(b in) { b.t.Filters[0].Program = nil }},
		{"filter of half an instruction", func(b in) { b.t.Filters[0].Program = make([]byte, 12) }},
		{"filter too long", func(b in) { b.t.Filters[0].Program = make([]byte, 4097*8) }},
		{"long siginfo of a thread", func(b in) { b.p.Threads[1].Pending[0] = make([]byte, 129) }},
	} {
		m := sample()
		p := &m.Processes[0]
		test.spoil(in{m, p, &p.Memory, &p.Threads[0]})
		if err := m.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", test.name, err)
		}
		data, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(data); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: decoded with error %v", test.name, err)
		}
	}
}

func TestValidateLayout(t *testing.T) {
	if err := sampleLayout().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		spoil func(l *Layout, p *ProcessState)
	}{
		{"negative round", func(l *Layout, _ *ProcessState) { l.Round = -1 }},
		{"object of no kind", func(l *Layout, _ *ProcessState) { l.Objects[0].Kind = "" }},
		{"relative path", func(l *Layout, _ *ProcessState) { l.Files[0].Path = "usr" }},
		{"process in an object's space", func(l *Layout, p *ProcessState) { p.Space = l.Objects[0].Space }},
		{"mappings that overlap", func(_ *Layout, p *ProcessState) { p.Mappings[0].End = p.Mappings[2].End }},
		{"mapping of no file", func(l *Layout, p *ProcessState) { p.Mappings[0].File = len(l.Files) }},
		{"mapping of no object", func(l *Layout, p *ProcessState) { p.Mappings[2].Object = len(l.Objects) }},
		{"no threads", func(_ *Layout, p *ProcessState) { p.Threads = nil }},
		{"leader is not the first thread", func(_ *Layout, p *ProcessState) { p.Threads[0]++ }},
		{"two processes with one id", func(l *Layout, p *ProcessState) {
			second := *p
			second.Space = 9
			l.Processes = append(l.Processes, second)
		}},
	} {
		l := sampleLayout()
		test.spoil(l, &l.Processes[0])
		if err := l.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", test.name, err)
		}
	}
}
