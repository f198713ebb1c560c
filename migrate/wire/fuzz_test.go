package wire

import (
	"bytes"
	"reflect"
	"testing"
)

// What was read can be written, and reads as the same again.
func FuzzReadHello(f *testing.F) {
	var seed bytes.Buffer
	if err := WriteHello(&seed, Hello{Migration: "m-7", Epoch: 2, Token: []byte("token")}); err != nil {
		f.Fatal(err)
	}
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ReadHello(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteHello(&again, h); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadHello(&again); err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("%+v (%v) instead of %+v", got, err, h)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	for _, r := range []Reply{{Kind: Welcome}, {Kind: Placed, Round: 9}, {Kind: Failed, Reason: "why"}} {
		var seed bytes.Buffer
		if err := WriteReply(&seed, r); err != nil {
			f.Fatal(err)
		}
		f.Add(seed.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ReadReply(bytes.NewReader(data))
		if err != nil || len(r.Reason) > maxReasonBytes {
			return
		}
		var again bytes.Buffer
		if err := WriteReply(&again, r); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadReply(&again); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v (%v) instead of %+v", got, err, r)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	for _, v := range []*Verify{nil, {Runs: []Run{{1, 10, 300}}, ChunkPages: 256, Digests: []uint64{5, 6}}} {
		data, err := (&State{Image: smallest(f), Verify: v}).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, v, err := DecodeState(data)
		if err != nil {
			return
		}
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		if v == nil {
			return
		}
		var pages uint64
		for _, r := range v.Runs {
			pages += r.Pages
		}
		if v.ChunkPages == 0 || (pages+v.ChunkPages-1)/v.ChunkPages != uint64(len(v.Digests)) {
			t.Fatalf("%d digests of %d pages each for %d pages", len(v.Digests), v.ChunkPages, pages)
		}
	})
}

func FuzzDecodeSignals(f *testing.F) {
	s := Signals{Processes: []ProcessSignals{{
		PID: 7, Shared: [][]byte{make([]byte, siginfoBytes)},
		Threads: []ThreadSignals{{TID: 8, Pending: [][]byte{make([]byte, siginfoBytes)}}},
	}}}
	data, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSignals(data)
		if err != nil {
			return
		}
		for _, p := range s.Processes {
			for _, info := range p.Shared {
				if len(info) != siginfoBytes {
					t.Fatalf("siginfo of %d bytes", len(info))
				}
			}
		}
		encoded, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeSignals(encoded); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v (%v) instead of %+v", again, err, s)
		}
	})
}

func FuzzDecodeBarrier(f *testing.F) {
	f.Add(EncodeBarrier(300))
	f.Add(EncodeBarrier(1<<32 - 1))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		round, err := DecodeBarrier(data)
		if (err == nil) != (len(data) == 4) {
			t.Fatalf("%d bytes read as %d, %v", len(data), round, err)
		}
		if err == nil && !bytes.Equal(EncodeBarrier(round), data) {
			t.Fatalf("%x reads as %d, which is %x", data, round, EncodeBarrier(round))
		}
	})
}
