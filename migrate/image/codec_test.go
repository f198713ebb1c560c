package image

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// sample is an image with something in every part that refers to another.
func sample() *Image {
	object := func(kind ObjectKind, space uint32, name string) Object {
		return Object{Kind: kind, Space: space, Bytes: 3 * PageSize, Name: name, Mode: 0o600}
	}
	return &Image{
		Version: Version,
		Host: Host{
			Name: "host-a", BootID: "4e9c", Kernel: "6.12.0",
			CPU:  CPU{Vendor: "GenuineIntel", Flags: []string{"avx", "avx2"}, XStateMask: 7, XStateBytes: 832},
			VDSO: VDSO{Digest: bytes.Repeat([]byte{9}, 32), Parts: []VDSOPart{{"[vvar]", 0, 4 * PageSize}, {"[vdso]", 4 * PageSize, 2 * PageSize}}},
		},
		Clocks: Clocks{Realtime: 1, Monotonic: -5, Boottime: 7},
		Processes: []Process{{
			PID: 812, PPID: 1, PGID: 812, SID: 811,
			Memory: Memory{
				Space: 1,
				Mappings: []Mapping{
					{AddressRange: AddressRange{0x400000, 0x402000}, Prot: 5, Backing: BackingFile, File: 0, Offset: PageSize},
					{AddressRange: AddressRange{0x600000, 0x700000}, Prot: 3, Backing: BackingAnonymous, Name: "heap of mine", Flags: FlagLocked | FlagDontFork},
					{AddressRange: AddressRange{0x700000, 0x701000}, Prot: 3, Shared: true, Backing: BackingObject, Object: 1, Offset: 2 * PageSize},
					{AddressRange: AddressRange{0x7ff000000000, 0x7ff000002000}, Prot: 5, Backing: BackingKernel, Name: "[vdso]"},
				},
				Marks:  Marks{StartCode: 0x400000, EndCode: 0x402000, StartBrk: 0x600000, Brk: 0x610000},
				Exe:    0,
				Auxv:   bytes.Repeat([]byte{6}, 32),
				Guards: []AddressRange{{0x610000, 0x611000}},
			},
			Descriptors: []Descriptor{{0, 0, false}, {1, 1, true}, {7, 7, false}},
			Locks:       []Lock{{Kind: LockPOSIX, File: 0, Write: true, Start: 10, Len: 5}},
			Root:        "/", Cwd: "/srv",
			Umask:          0o22,
			Actions:        []SignalAction{{Signal: 1, Handler: 0x400100, Flags: 0x04000000, Restorer: 0x400200, Mask: 1 << 63}},
			Pending:        [][]byte{bytes.Repeat([]byte{1}, sigInfoSize)},
			IntervalTimers: []IntervalTimer{{Which: 2, Value: 1, Interval: 2}},
			Timers:         []Timer{{ID: 3, Clock: -6, Value: 9}},
			Limits:         []Limit{{1024, ^uint64(0)}},
			Switches:       []Switch{{"dumpable", 1}},
			Threads: []Thread{
				{
					TID: 812, Name: "main", Registers: bytes.Repeat([]byte{2}, 27*8), XState: bytes.Repeat([]byte{3}, 832),
					Call:    &SystemCall{Nr: 35, Args: [6]uint64{1, 2, 3, 4, 5, 6}, Restart: 516, Remaining: -1},
					Filters: []Filter{{Program: bytes.Repeat([]byte{6}, 16), Flags: 2}},
					Credentials: Credentials{
						UIDs: [4]uint32{1, 2, 3, 4}, GIDs: [4]uint32{5, 6, 7, 8}, Groups: []uint32{100}, Bounding: ^uint64(0),
					},
				},
				{TID: 813, Name: "worker", Pending: [][]byte{bytes.Repeat([]byte{4}, sigInfoSize)}, Affinity: []byte{3}},
			},
		}},
		Files: []File{
			0: {Kind: FileRegular, Path: "/usr/bin/program", Identity: &Identity{Inode: 7, Bytes: 9000, Mapped: true}, Locks: []Lock{{Kind: LockFlock}}},
			1: {Kind: FilePipe, Pipe: 0, Owner: &Owner{1, 812, 29}},
			2: {Kind: FileObject, Object: 2, Position: 12},
			3: {Kind: FileSocket, Socket: 1},
			4: {Kind: FileEvent, Event: &Event{Count: ^uint64(0) - 1, Semaphore: true}},
			5: {Kind: FileTimer, Timer: &TimerFD{Clock: 1, Ticks: 2, Value: 3, Interval: 4}},
			6: {Kind: FileInotify, Inotify: &Inotify{Watches: []InotifyWatch{{1, "/etc", 0xfff}}}},
			7: {Kind: FileEpoll, Epoll: []Watch{{FD: 1, File: 1, Events: 1, Data: ^uint64(0)}}},
			8: {Kind: FileSignal, SignalMask: 1 << 40},
			9: {Kind: FileDevice, Path: "/dev/null"},
		},
		Objects: []Object{
			object(ObjectMemfd, 2, "a name"),
			object(ObjectSharedAnonymous, 3, ""),
			object(ObjectDeletedFile, 4, "/tmp/gone"),
		},
		Pipes:   []Pipe{{Bytes: PageSize, Content: [][]byte{[]byte("ab"), []byte("c")}}},
		Sockets: []Socket{{Type: 1, Peer: 1, Options: []Option{{1, 7, []byte{0, 1}}}, Queue: []Message{{Data: []byte("x"), PID: 812}}}, {Type: 1, Peer: 0}},
		TimeWaits: TimeWaits{Others: 3, All: []tcprepair.TimeWait{{
			Local: netip.MustParseAddrPort("[fd77::1]:80"), Remote: netip.MustParseAddrPort("[fd77::2]:4321"), IPv6: true, FinWait: true,
			SendNext: 1<<32 - 1, ReceiveNext: 1, Window: 65536, ReceiveScale: 7, Timestamps: true, Recent: 5, Timestamp: 6, Mark: 7, TOS: 8, Left: 9,
		}}},
	}
}

// sampleLayout is the layout that goes with the sample.
func sampleLayout() *Layout {
	m := sample()
	p := &m.Processes[0]
	mappings := p.Memory.Mappings
	mappings[1].Fresh = []AddressRange{{0x601000, 0x603000}}
	return &Layout{
		Round:     2,
		Processes: []ProcessState{{PID: p.PID, Space: p.Memory.Space, Mappings: mappings, Threads: []int{812, 813}}},
		Files:     m.Files[:1],
		Objects:   m.Objects,
	}
}

// sameAs compares images; on the wire an empty list is the same as none.
var sameAs = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}, netip.Prefix{})}

func TestSampleSurvives(t *testing.T) {
	want := sample()
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameAs); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}

	layout := sampleLayout()
	if data, err = layout.Encode(); err != nil {
		t.Fatal(err)
	}
	gotLayout, err := DecodeLayout(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(layout, gotLayout, sameAs); diff != "" {
		t.Errorf("layout (-want +got):\n%s", diff)
	}
}

// Every field survives, whatever its value, and the same value is always
// written as the same bytes.
func TestEveryFieldSurvives(t *testing.T) {
	// Names are what their owner made them, not always UTF-8.
	name := rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 4), func(b []byte) string { return string(b) })
	address := rapid.Custom(func(t *rapid.T) netip.AddrPort {
		size := rapid.SampledFrom([]int{0, 4, 16}).Draw(t, "bytes")
		addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "address"))
		return netip.AddrPortFrom(addr, rapid.Uint16().Draw(t, "port"))
	})
	addr := rapid.Map(address, func(a netip.AddrPort) netip.Addr { return a.Addr() })
	prefix := rapid.Map(address, func(a netip.AddrPort) netip.Prefix {
		return netip.PrefixFrom(a.Addr(), int(a.Port())%33)
	})
	image := rapid.MakeCustom[Image](rapid.MakeConfig{Types: map[reflect.Type]*rapid.Generator[any]{
		reflect.TypeFor[string](): name.AsAny(), reflect.TypeFor[netip.AddrPort](): address.AsAny(), reflect.TypeFor[netip.Prefix](): prefix.AsAny(),
		reflect.TypeFor[netip.Addr](): addr.AsAny(),
	}})
	rapid.Check(t, func(t *rapid.T) {
		want := image.Draw(t, "image")
		data, err := encode(&want)
		if err != nil {
			t.Fatal(err)
		}
		var got Image
		if err := decode(data, &got); err != nil {
			t.Fatal(err)
		}
		again, err := encode(&got)
		if err != nil {
			t.Fatal(err)
		}
		// Comparing field by field takes long; it finds what is never written.
		if same := bytes.Equal(data, again); !same || len(data) < 10_000 {
			if diff := cmp.Diff(want, got, sameAs); !same || diff != "" {
				t.Errorf("written again it is the same: %t (-want +got):\n%s", same, diff)
			}
		}
	})
}

// Names of files are bytes.
func TestNamesNeedNotBeUTF8(t *testing.T) {
	m := sample()
	m.Processes[0].Cwd = "/srv/gr\xfc\xdfe"
	m.Objects[0].Name = "\xff"
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := cbor.Wellformed(data); err != nil {
		t.Error(err)
	}
	var generic any
	if err := cbor.Unmarshal(data, &generic); err != nil {
		t.Errorf("what was written is not valid CBOR: %v", err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Processes[0].Cwd != m.Processes[0].Cwd || got.Objects[0].Name != m.Objects[0].Name {
		t.Errorf("%q and %q came back", got.Processes[0].Cwd, got.Objects[0].Name)
	}
}

// The version is checked before anything else is believed.
func TestOtherVersionsAreRefused(t *testing.T) {
	m := sample()
	m.Version = Version + 1
	data, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data); err == nil || errors.Is(err, ErrInvalid) {
		t.Errorf("image of another version: %v", err)
	}
	if data, err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data); err != nil {
		t.Errorf("Encode writes down a version that is not its own: %v", err)
	}
}

// What no encoder of this program writes is refused.
func TestForeignEncodingsAreRefused(t *testing.T) {
	valid, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, data string }{
		{"nothing", ""},
		{"cut off", hex.EncodeToString(valid[:len(valid)-1])},
		{"more than one", hex.EncodeToString(valid) + "00"},
		{"a number", "01"},
		{"unknown field", "a1" + "63" + hex.EncodeToString([]byte("new")) + "01"},
		{"field twice", "a2" + "6776657273696f6e01" + "6776657273696f6e01"},
		{"list without a length", "a1" + "6566696c6573" + "9fff"},
		{"tag", "a1" + "6776657273696f6e" + "c001"},
		{"a list that promises too much", "a1" + "6566696c6573" + "9b000000ffffffffff"},
		{"a byte string that promises too much", "a1" + "64686f7374" + "5b00000fffffffffff"},
		{"deep", "a1" + "6566696c6573" + "8181818181818181818181818181818181818181818101"},
	} {
		data, err := hex.DecodeString(test.data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(data); err == nil {
			t.Errorf("%s: accepted as an image", test.name)
		}
		if _, err := DecodeLayout(data); err == nil {
			t.Errorf("%s: accepted as a layout", test.name)
		}
	}
}

// Whatever arrives, what is accepted is valid, is written again and read back
// as the same.
func FuzzDecode(f *testing.F) {
	data, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got, sameAs); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

// Besides, an accepted layout can be compared with any other.
func FuzzDecodeLayout(f *testing.F) {
	data, err := sampleLayout().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	base := sampleLayout().Processes[0].Mappings
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := DecodeLayout(data)
		if err != nil {
			return
		}
		again, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeLayout(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(l, got, sameAs); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
		for _, p := range l.Processes {
			if err := validateMappings(Diff(base, p.Mappings).Map, len(l.Files), len(l.Objects)); err != nil {
				t.Errorf("what is to be mapped is invalid: %v", err)
			}
		}
	})
}
