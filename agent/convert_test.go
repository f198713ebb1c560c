package agent

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Whatever an order asks for, what is taken from it is within bounds, and
// complete.
func FuzzOptionsOf(f *testing.F) {
	for _, o := range []*migratev1.Options{
		{},
		{MaxDowntime: durationpb.New(20 * time.Millisecond), MaxRounds: 7, Compress: "zstd", BandwidthBytes: 1 << 20, Strict: true},
		{MaxDowntime: &durationpb.Duration{Seconds: math.MaxInt64, Nanos: -1}},
		{MaxRounds: math.MaxUint32, Compress: "lzw"},
	} {
		data, err := proto.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var o migratev1.Options
		if proto.Unmarshal(data, &o) != nil {
			return
		}
		options, err := optionsOf(&o)
		if err != nil {
			return
		}
		if err := options.Validate(); err != nil || !options.Equal(options.WithDefaults()) || options.MaxDowntime <= 0 || options.MaxRounds <= 0 {
			t.Errorf("%v becomes %+v: %v", &o, options, err)
		}
	})
}

// An order names a migration by what may be part of a file's name.
func FuzzAttempt(f *testing.F) {
	f.Add("06h1g8c3an3f4fkt", uint64(3))
	f.Add("../agent", uint64(1))
	f.Add("", uint64(0))
	f.Fuzz(func(t *testing.T, id string, epoch uint64) {
		if attempt(&migratev1.Ref{Migration: id, Epoch: epoch}) != nil {
			return
		}
		if epoch == 0 || id == "" || len(id) > 64 || id[0] == '.' {
			t.Errorf("%q epoch %d is an attempt", id, epoch)
		}
		for _, c := range []byte(id) {
			if c == '/' || c == 0 || c <= ' ' || c >= 0x7f {
				t.Errorf("%q is an attempt", id)
			}
		}
	})
}
