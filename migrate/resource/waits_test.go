package resource

import (
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// A sleep that is over is not taken for one that goes on: what is left of it would
// end the next one at once.
func TestStillSleeps(t *testing.T) {
	frozen := time.Now()
	for name, tt := range map[string]struct {
		until    time.Duration // after the freeze
		switches uint64        // since it was noted
		want     bool
	}{
		"goes on":                             {time.Second, 2, true},
		"ends while it is stopped":            {time.Microsecond, 2, true},
		"woken up before":                     {time.Second, 3, false},
		"timed out before, asleep once more":  {-time.Microsecond, 3, false},
		"likewise, and not in the freezer":    {-time.Microsecond, 2, false},
		"timed out at the moment of freezing": {0, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			noted := procfs.Sleep{Switches: 7, NotBefore: frozen.Add(tt.until), Until: frozen.Add(tt.until + time.Millisecond)}
			if got := stillSleeps(noted, procfs.Sleep{Switches: 7 + tt.switches}, frozen); got != tt.want {
				t.Errorf("%v", got)
			}
		})
	}
}
