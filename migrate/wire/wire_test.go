package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/migrate/image"
)

func drawReply(t *rapid.T) Reply {
	return Reply{
		Kind:   rapid.SampledFrom([]ReplyKind{Welcome, Placed, Differs, Prepared, Failed}).Draw(t, "kind"),
		Round:  rapid.Uint32().Draw(t, "round"),
		Reason: rapid.String().Draw(t, "reason"),
		Runs:   drawRuns(t),
	}
}

func drawRuns(t *rapid.T) []Run {
	var runs []Run
	for range rapid.IntRange(0, 3).Draw(t, "runs") {
		runs = append(runs, Run{
			Space: rapid.Uint32().Draw(t, "space"), First: rapid.Uint64Range(0, maxPages/2).Draw(t, "first"),
			Pages: rapid.Uint64Range(1, maxPages/4).Draw(t, "pages"),
		})
	}
	return runs
}

// What a reply can name fits into one, however many there are.
func TestManyRuns(t *testing.T) {
	runs := make([]Run, 2*MaxRuns)
	for i := range runs {
		runs[i] = Run{Space: 1<<32 - 1, First: maxPages - 1 - uint64(i), Pages: 1}
	}
	var stream bytes.Buffer
	if err := WriteReply(&stream, Reply{Kind: Differs, Runs: runs}); err != nil {
		t.Fatal(err)
	}
	got, err := ReadReply(&stream)
	if err != nil || !reflect.DeepEqual(got.Runs, runs[:MaxRuns]) {
		t.Errorf("%d runs, %v", len(got.Runs), err)
	}
}

func TestHelloAndReplyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hello := Hello{
			Migration: rapid.StringN(1, 40, 200).Draw(t, "migration"),
			Epoch:     rapid.Uint64().Draw(t, "epoch"),
			Token:     rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "token"),
		}
		replies := rapid.SliceOfN(rapid.Custom(drawReply), 0, 4).Draw(t, "replies")
		var stream bytes.Buffer
		if err := WriteHello(&stream, hello); err != nil {
			t.Fatal(err)
		}
		for _, r := range replies {
			if err := WriteReply(&stream, r); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ReadHello(&stream)
		if err != nil || !cmp.Equal(got, hello) {
			t.Fatalf("%+v (%v) instead of %+v", got, err, hello)
		}
		for _, want := range replies {
			got, err := ReadReply(&stream)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v (%v) instead of %+v", got, err, want)
			}
		}
		if _, err := ReadReply(&stream); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("the end of the stream reads as %v", err)
		}
	})
}

// A failure is told whatever is in its reason.
func TestReasonIsMadeToFit(t *testing.T) {
	for _, reason := range []string{"opening /tmp/\xff\xfe: no such file", strings.Repeat("x", 1<<20), strings.Repeat("ü", 1<<19), strings.Repeat("\xff", 1<<17)} {
		var stream bytes.Buffer
		if err := WriteReply(&stream, Reply{Kind: Failed, Reason: reason}); err != nil {
			t.Fatal(err)
		}
		r, err := ReadReply(&stream)
		if err != nil || r.Reason == "" || !strings.HasPrefix(r.Reason, strings.ToValidUTF8(reason[:12], "?")) {
			t.Errorf("reason of %d bytes reads as %.40q, %v", len(reason), r.Reason, err)
		}
	}
}

// The bytes are what other versions of the program read and write.
func TestGolden(t *testing.T) {
	for name, test := range map[string]struct {
		write func(io.Writer) error
		want  string
	}{
		"hello": {
			func(w io.Writer) error {
				return WriteHello(w, Hello{Migration: "m-7", Epoch: 2, Token: []byte{1, 2, 3}})
			},
			"20000000" + "a3" + "696d6967726174696f6e" + "636d2d37" + "6565706f6368" + "02" + "65746f6b656e" + "43010203",
		},
		"placed": {
			func(w io.Writer) error { return WriteReply(w, Reply{Kind: Placed, Round: 300}) },
			"16000000" + "a2" + "646b696e64" + "66706c61636564" + "65726f756e64" + "19012c",
		},
		"failed": {
			func(w io.Writer) error { return WriteReply(w, Reply{Kind: Failed, Reason: "no"}) },
			"17000000" + "a2" + "646b696e64" + "666661696c6564" + "66726561736f6e" + "626e6f",
		},
		"barrier": {
			func(w io.Writer) error {
				_, err := w.Write(EncodeBarrier(300))
				return err
			},
			"2c010000",
		},
	} {
		var got bytes.Buffer
		if err := test.write(&got); err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got.Bytes()) != test.want {
			t.Errorf("%s is %x instead of %s", name, got.Bytes(), test.want)
		}
	}
}

func frame(t *testing.T, v any) []byte {
	t.Helper()
	body, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestBadFrames(t *testing.T) {
	hello := frame(t, Hello{Migration: "m", Token: []byte("t")})
	for name, data := range map[string][]byte{
		"empty":         {},
		"half a length": {1, 0},
		"cut off":       hello[:len(hello)-1],
		"too long":      binary.LittleEndian.AppendUint32(nil, maxFrameBytes+1),
		"no token":      frame(t, Hello{Migration: "m"}),
		"no migration":  frame(t, Hello{Token: []byte("t")}),
		"unknown field": frame(t, map[string]any{"migration": "m", "token": []byte("t"), "more": 1}),
		"no map":        frame(t, []int{1}),
		"more behind":   append(binary.LittleEndian.AppendUint32(nil, uint32(len(hello)-4+1)), append(hello[4:], 0)...),
		"field twice":   append([]byte{25, 0, 0, 0}, "\xa3\x69migration\x61m\x69migration\x61m\x65"...),
	} {
		if h, err := ReadHello(bytes.NewReader(data)); err == nil {
			t.Errorf("%s: read as %+v", name, h)
		}
		if r, err := ReadReply(bytes.NewReader(data)); err == nil {
			t.Errorf("%s: read as %+v", name, r)
		}
	}
	if r, err := ReadReply(bytes.NewReader(frame(t, Reply{Kind: "perhaps"}))); err == nil {
		t.Errorf("read as %+v", r)
	}
	if err := WriteHello(io.Discard, Hello{Migration: "m", Token: make([]byte, maxFrameBytes)}); err == nil {
		t.Error("writes a frame that nobody reads")
	}
}

func TestBarrier(t *testing.T) {
	for _, n := range []uint32{0, 1, 300, 1<<32 - 1} {
		if got, err := DecodeBarrier(EncodeBarrier(n)); got != n || err != nil {
			t.Errorf("%d: %d, %v", n, got, err)
		}
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, {1, 2, 3, 4, 5}} {
		if n, err := DecodeBarrier(bad); err == nil {
			t.Errorf("%v reads as %d", bad, n)
		}
	}
}

// smallest is an image that a decoder accepts.
func smallest(t testing.TB) []byte {
	t.Helper()
	m := &image.Image{Processes: []image.Process{{
		PID: 812, Root: "/", Cwd: "/",
		Memory:  image.Memory{Space: 1, Exe: image.None},
		Threads: []image.Thread{{TID: 812, Registers: make([]byte, 27*8)}},
	}}}
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestState(t *testing.T) {
	good := Verify{Runs: []Run{{1, 10, 300}, {2, 0, 1}}, ChunkPages: 256, Digests: []uint64{5, 1<<64 - 1}}
	for _, v := range []*Verify{nil, &good} {
		data, err := (&State{Image: smallest(t), Verify: v}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		m, got, err := DecodeState(data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Processes[0].PID != 812 || !cmp.Equal(v, got) {
			t.Errorf("%+v, %s", m.Processes, cmp.Diff(v, got))
		}
	}
	for name, change := range map[string]func(*Verify){
		"no pages in a chunk":       func(v *Verify) { v.ChunkPages = 0 },
		"too many pages in a chunk": func(v *Verify) { v.ChunkPages = maxPages + 1 },
		"digest missing":            func(v *Verify) { v.Digests = v.Digests[:1] },
		"digest too many":           func(v *Verify) { v.Digests = append(v.Digests, 1) },
		"empty run":                 func(v *Verify) { v.Runs = []Run{{1, 0, 0}, {1, 0, 512}} },
		"run out of range":          func(v *Verify) { v.Runs = []Run{{1, maxPages, 512}} },
		"run that wraps around":     func(v *Verify) { v.Runs = []Run{{1, 1<<64 - 512, 512}} },
		"too many pages":            func(v *Verify) { v.Runs = []Run{{1, 0, maxPages}, {2, 0, maxPages}}; v.ChunkPages = maxPages },
	} {
		v := Verify{Runs: []Run{{1, 0, 512}}, ChunkPages: 256, Digests: []uint64{1, 2}}
		change(&v)
		data, err := (&State{Image: smallest(t), Verify: &v}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := DecodeState(data); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if data, err := (&State{Image: []byte("no image")}).Encode(); err != nil {
		t.Error(err)
	} else if _, _, err := DecodeState(data); err == nil {
		t.Error("a state without an image is accepted")
	}
}

func TestSignals(t *testing.T) {
	info := func(b byte) []byte { return bytes.Repeat([]byte{b}, siginfoBytes) }
	for _, test := range []struct {
		signals Signals
		empty   bool
	}{
		{Signals{}, true},
		{Signals{Processes: []ProcessSignals{{PID: 7, Threads: []ThreadSignals{{TID: 8}}}}}, true},
		{Signals{Processes: []ProcessSignals{{PID: 7, Shared: [][]byte{info(1)}}}}, false},
		{Signals{Processes: []ProcessSignals{{PID: 7}, {PID: 9, Threads: []ThreadSignals{{TID: 9}, {TID: 10, Pending: [][]byte{info(2), info(3)}}}}}}, false},
	} {
		if test.signals.Empty() != test.empty {
			t.Errorf("%+v is empty: %v", test.signals, !test.empty)
		}
		data, err := test.signals.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeSignals(data)
		if err != nil {
			t.Fatal(err)
		}
		if !cmp.Equal(*got, test.signals) {
			t.Error(cmp.Diff(*got, test.signals))
		}
	}
	for _, bad := range [][]byte{info(1)[1:], append(info(1), 1), {}} {
		for _, s := range []Signals{
			{Processes: []ProcessSignals{{Shared: [][]byte{bad}}}},
			{Processes: []ProcessSignals{{Threads: []ThreadSignals{{Pending: [][]byte{info(1), bad}}}}}},
		} {
			data, err := s.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeSignals(data); err == nil {
				t.Errorf("a siginfo of %d bytes is accepted", len(bad))
			}
		}
	}
}
