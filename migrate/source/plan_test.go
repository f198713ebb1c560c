package source

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// TestPlanOfBefore: a plan that an earlier agent left is understood. The file is
// not to be changed; what a new version adds goes into another.
func TestPlanOfBefore(t *testing.T) {
	content, err := os.ReadFile("testdata/plan-1.json")
	if err != nil {
		t.Fatal(err)
	}
	var got Plan
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	want := Plan{
		Migration: "06h1j8bmx8acanrd", Epoch: 3, Group: "/sys/fs/cgroup/a/06h1j8bmx8acanrd", Injecting: true, FrozenAt: 123456789,
		Processes: []PlanProcess{{
			PID: 10021, StartTime: 4711, Origin: "/sys/fs/cgroup/a", Userfaultfds: []int{5},
			Scratch: &parasite.Scratch{Code: 0x100000000, Data: 0x100001000},
		}},
		Locks: &image.Image{
			Version: 1,
			Files:   []image.File{{Path: "/var/lib/db", Locks: []image.Lock{{Kind: image.LockFlock, Write: true}}}},
			Processes: []image.Process{{
				PID: 10021, Descriptors: []image.Descriptor{{FD: 3}},
				Locks: []image.Lock{{Kind: image.LockPOSIX, Start: 10, Len: 5}},
			}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the plan is read as another:\n%s", diff)
	}
}
