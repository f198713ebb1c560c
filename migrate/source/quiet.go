package source

import (
	"runtime/debug"
	"sync"
)

// quiet counts those who want no garbage collection at this moment.
var quiet struct {
	mu      sync.Mutex
	wanted  int
	percent int // what to set it back to
}

// keepQuiet turns garbage collection off until the returned function is called:
// a freeze is too short for it.
func keepQuiet() (stop func()) {
	quiet.mu.Lock()
	defer quiet.mu.Unlock()
	if quiet.wanted == 0 {
		quiet.percent = debug.SetGCPercent(-1)
	}
	quiet.wanted++
	return sync.OnceFunc(func() {
		quiet.mu.Lock()
		defer quiet.mu.Unlock()
		if quiet.wanted--; quiet.wanted == 0 {
			debug.SetGCPercent(quiet.percent)
		}
	})
}
