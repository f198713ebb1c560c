package agent

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/migrate"
)

// TestJournalOfBefore: what an agent of version 1 has written is read as it was
// meant by every agent that comes after it. The files in testdata are not to be
// changed; what a new version adds goes into others.
func TestJournalOfBefore(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/journal")); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".json" {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, bytes.ReplaceAll(content, []byte("BOOT"), []byte(j.boot)), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{{
		Version: 1, Boot: j.boot, Migration: "06h1j8bmx8acanrd", Epoch: 3, Side: migrate.SideSource, PIDs: []int{10021}, Peer: "host-b",
		Phase: phasePromised, Plan: json.RawMessage(`{"migration":"06h1j8bmx8acanrd","epoch":3}`),
		Measured: migrate.Measured{
			Rounds:   []migrate.Round{{N: 0, Pages: 7, Bytes: 28672, WireBytes: 9000, MS: 1.5}},
			PhasesMS: map[string]float64{migrate.PhaseDump: 7.5}, DowntimeMS: 21.5, Bytes: 28672, WireBytes: 9000,
		},
	}, {
		Version: 1, Boot: j.boot, Migration: "06h1j8bzjctxn9k2", Epoch: 4, Side: migrate.SideTarget, PIDs: []int{10048}, Peer: "host-a",
		Phase: phaseOver, PreparedAt: 123456789, Outcome: migrate.OutcomeReleased, Reason: "the agent on the destination was lost",
		Blockers:  []migrate.Finding{{Code: migrate.CodePIDTaken, Detail: "what", Hint: "how"}},
		Rehearsed: true, Lost: "two locks", DowntimeMS: 23.5, PhasesMS: map[string]float64{migrate.PhaseResume: 0.5}, Announced: true,
	}}
	entries, err := j.read()
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.Migration, b.Migration) })
	if diff := gocmp.Diff(want, entries); err != nil || diff != "" {
		t.Errorf("entries: %v\n%s", err, diff)
	}
	plans, err := j.readInspections()
	if diff := gocmp.Diff(map[string]json.RawMessage{"06h1j8cb3xc1sabe": json.RawMessage(`{"migration":"06h1j8cb3xc1sabe","epoch":0}`)}, plans); err != nil || diff != "" {
		t.Errorf("inspections: %v\n%s", err, diff)
	}
}
