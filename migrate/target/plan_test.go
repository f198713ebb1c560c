package target_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/migrate/target"
)

// TestPlanOfBefore: a plan that an earlier agent left is understood.
func TestPlanOfBefore(t *testing.T) {
	const of1 = `{"migration":"06h1j8bmx8acanrd","group":"/sys/fs/cgroup/arrived/06h1j8bmx8acanrd","pids":[10021],"prepared":true,"committed":true}`
	var got target.Plan
	if err := json.Unmarshal([]byte(of1), &got); err != nil {
		t.Fatal(err)
	}
	want := target.Plan{Migration: "06h1j8bmx8acanrd", Group: "/sys/fs/cgroup/arrived/06h1j8bmx8acanrd", PIDs: []int{10021}, Prepared: true, Committed: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the plan is read as another:\n%s", diff)
	}
}
