package target

import (
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// However wrong a host's clock is, the process's clocks go on from where they
// were: by the time that has passed, and what a network may have taken.
func TestClocksOfHostsThatDisagree(t *testing.T) {
	const passed = 3 * time.Second
	for _, ahead := range []time.Duration{0, 40 * time.Millisecond, 20 * time.Second, -20 * time.Second, time.Hour} {
		now := time.Now()
		then := image.Clocks{Realtime: now.Add(-passed - ahead).UnixNano(), Monotonic: 7, Boottime: int64(time.Hour)}
		s := &Shell{config: Config{Inventory: &image.Image{Clocks: then}, InventoryRead: now.Add(-passed)}}
		got := s.clocks()
		went := time.Duration(got.Monotonic - then.Monotonic)
		if went != time.Duration(got.Boottime-then.Boottime) {
			t.Errorf("clocks of %+v after %+v", got, then)
		}
		least := passed + min(max(ahead, 0), 250*time.Millisecond)
		if went < least || went > passed+250*time.Millisecond+time.Since(now) {
			t.Errorf("%v ahead: they go on by %v after %v", ahead, went, passed)
		}
	}
}
