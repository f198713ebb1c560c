package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pagurus-project/pagurus/e2e/lab/cgroup"
)

// groups are the control groups of one lab, one below another: the machine's,
// the lab's, those of its hosts.
type groups struct {
	hierarchy *cgroup.Hierarchy
	path      string
}

const groupPrefix = "pagurus-lab-"

// openGroups finds the place of a lab's groups, which need not exist.
func openGroups(id string) (*groups, error) {
	hierarchy, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	return &groups{hierarchy: hierarchy, path: filepath.Join(hierarchy.Path, groupPrefix+id)}, nil
}

func (g *groups) close() error { return g.hierarchy.Close() }

func (g *groups) host(name string) string { return filepath.Join(g.path, name) }

// make makes the groups of hosts.
func (g *groups) make(hosts []hostPlan) error {
	for _, h := range hosts {
		if err := os.MkdirAll(g.host(h.Name), 0o755); err != nil {
			return fmt.Errorf("making a control group: %w", err)
		}
	}
	return nil
}

// init is the PID, as seen from here, of a host's first process.
func (g *groups) init(host string) (int, error) {
	content, err := os.ReadFile(filepath.Join(g.host(host), "init", "cgroup.procs"))
	if err != nil {
		return 0, fmt.Errorf("looking for the first process of %s: %w", host, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0, fmt.Errorf("%s does not run", host)
	}
	return pid, nil
}
