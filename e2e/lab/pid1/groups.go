package pid1

import (
	"fmt"
	"os"
	"path/filepath"
)

// The host's control groups, as seen from inside.
const (
	groupRoot = "/sys/fs/cgroup"
	groupInit = groupRoot + "/init"
	groupExec = groupRoot + "/exec"
)

func groupOfDaemon(name string) string { return filepath.Join(groupRoot, "daemons", name) }

// openGroup makes a control group if there is none yet and opens it, for
// starting processes in it.
func openGroup(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	return os.Open(path)
}

// joinGroup moves this process.
func joinGroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("making a control group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("joining a control group: %w", err)
	}
	return nil
}
