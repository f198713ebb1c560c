package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The points of a migration at which an agent can be held. Each is an instant at
// which the record is in one state for certain.
const (
	holdInspecting = "inspecting" // source: PREFLIGHT, the process has not been looked at
	holdReserving  = "reserving"  // destination: PREFLIGHT, there is no shell yet
	holdCopying    = "copying"    // source: PRECOPY, pages have crossed
	holdStopped    = "stopped"    // source: FROZEN, by ptrace alone, which the record does not say yet
	holdBuilt      = "built"      // destination: FROZEN, everything has crossed
	holdPromising  = "promising"  // source: PREPARED, nothing is promised
	holdPromised   = "promised"   // source: PREPARED and promised, which nobody else knows
	holdCommitting = "committing" // destination: COMMITTED, it does not run yet
	holdDisposing  = "disposing"  // source: COMMITTED, it runs at the destination
)

// hold stops this agent, all of it, as SIGSTOP does, if the file STATE_DIR/hold
// names the point, and takes the file away. So a test can have a migration stand
// in a state until it has killed whom it wants to kill there. No agent of ours
// writes that file.
func (j *journal) hold(point string) {
	path := filepath.Join(filepath.Dir(j.dir), "hold")
	wanted, err := os.ReadFile(path)
	if err != nil || string(bytes.TrimSpace(wanted)) != point || os.Remove(path) != nil {
		return
	}
	// To this very thread, so that it does not get any further.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP) // cannot fail
}
