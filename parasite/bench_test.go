package parasite_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/parasite/parasitetest"
)

// BenchmarkCalls makes system calls in a process that goes on later: what a
// freeze consists of.
func BenchmarkCalls(b *testing.B) {
	parasitetest.NeedRoot(b)
	v := parasitetest.Start(b, parasitetest.Idle)
	tracer := parasite.NewTracer()
	defer tracer.Close()
	p, err := tracer.Seize(v.PID)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Stop(b.Context()); err != nil {
		b.Fatal(err)
	}
	const calls = 100
	for b.Loop() {
		err := tracer.Do(func() error {
			batch := leader(p).Batch(b.Context())
			for range calls {
				batch.Call(unix.SYS_GETPID)
			}
			return batch.Run(b.Context())
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/calls, "ns/call")
	if err := p.ReleaseScratch(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := p.Detach(); err != nil {
		b.Fatal(err)
	}
}
