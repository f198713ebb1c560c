package main

import (
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/pagurus-project/pagurus/migrate"
)

// outcome is the exit code that a migration's state stands for, with what has
// to be said of it, or nil.
func outcome(r migrate.Report) error {
	switch r.State {
	case migrate.StateDone, migrate.StateRehearsed:
		return nil
	case migrate.StateRefused:
		return &exitError{exitRefused, fmt.Errorf("refused: %s", oneEach(r.Blockers))}
	case migrate.StateAborted, migrate.StateReverted:
		now := fmt.Sprintf("process %d runs on %s as before", r.PID, r.From)
		if r.Ended {
			now = fmt.Sprintf("process %d on %s has ended", r.PID, r.From)
		}
		return &exitError{exitAborted, fmt.Errorf("%s: %s; %s", strings.ToLower(string(r.State)), oneLine(r.Reason), now)}
	}
	return &exitError{exitUndecided, fmt.Errorf("migration %s is %s: ask \"migratectl show %s\"", r.ID, r.State, r.ID)}
}

// oneEach puts findings on a line each, a single one on the line that is there.
func oneEach(findings []migrate.Finding) string {
	lines := make([]string, len(findings))
	for i, f := range findings {
		lines[i] = oneLine(f.String())
	}
	if len(lines) == 1 {
		return lines[0]
	}
	return plural(len(lines), "blocker") + "\n  " + strings.Join(lines, "\n  ")
}

// name is a process as people know it.
func name(r migrate.Report) string {
	if r.Command == "" {
		return fmt.Sprintf("process %d", r.PID)
	}
	return fmt.Sprintf("%d (%s)", r.PID, program(r.Command))
}

// program is a command line without arguments and directories.
func program(command string) string {
	words := strings.Fields(oneLine(command))
	if len(words) == 0 {
		return ""
	}
	return path.Base(words[0])
}

// summarize writes what has become of a migration, and what it cost.
func summarize(w io.Writer, r migrate.Report) {
	switch r.State {
	case migrate.StateDone:
		fmt.Fprintf(w, "Moved %s from %s to %s in %s; it stood still for %s.\n", name(r), r.From, r.To, duration(r.TotalMS), duration(r.DowntimeMS))
	case migrate.StateRehearsed:
		fmt.Fprintf(w, "Rehearsed moving %s from %s to %s in %s; it stood still for %s and runs on %s.\n", name(r), r.From, r.To, duration(r.TotalMS), duration(r.DowntimeMS), r.From)
	case migrate.StateRefused:
		return // nothing was touched, and why is an error
	case migrate.StateAborted, migrate.StateReverted:
		fmt.Fprintf(w, "Did not move %s from %s to %s: %s.\n", name(r), r.From, r.To, oneLine(r.Reason))
	default:
		fmt.Fprintf(w, "Moving %s from %s to %s: %s.\n", name(r), r.From, r.To, r.State)
	}
	if r.State == migrate.StateDone && len(r.Addresses) > 0 {
		var texts []string
		for _, p := range r.Addresses {
			texts = append(texts, p.Addr().String())
		}
		fmt.Fprintf(w, "With it went %s, which %s has now.\n", strings.Join(texts, ", "), r.To)
	}
	for _, p := range r.PassedOn {
		fmt.Fprintf(w, "%s passes the packets of %d connections at an address of its own on to %s, as long as they live.\n", p.Host, p.Connections, p.To)
	}
	if r.State == migrate.StateRehearsed && r.Reason != "" {
		fmt.Fprintln(w, "warning:", oneLine(r.Reason))
	}
	for _, f := range r.Warnings {
		fmt.Fprintln(w, "warning:", oneLine(f.String()))
	}
	if len(r.Rounds) > 0 {
		fmt.Fprintln(w)
		rounds(w, r.Rounds)
	}
	if r.DowntimeMS > 0 || len(r.Rounds) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintf(w, "downtime  %s%s\n", duration(r.DowntimeMS), parts(r.PhasesMS, downtimePhases))
		fmt.Fprintf(w, "total     %s%s\n", duration(r.TotalMS), parts(r.PhasesMS, []string{migrate.PhasePreflight, migrate.PhasePrecopy}))
		fmt.Fprintf(w, "memory    %s, of which %s went over the network\n", size(r.Bytes), size(r.WireBytes))
	}
	if r.State.Final() && !r.Settled {
		fmt.Fprintf(w, "\nCleaning up still goes on: see \"migratectl show %s\".\n", r.ID)
	}
}

// downtimePhases add up to the downtime.
var downtimePhases = []string{
	migrate.PhaseStop, migrate.PhaseDump, migrate.PhaseTransfer, migrate.PhaseRestore, migrate.PhaseDecide, migrate.PhaseResume,
}

// parts are the phases that a time consists of, as far as they are known.
func parts(phases map[string]float64, names []string) string {
	var known []string
	for _, name := range names {
		if ms, ok := phases[name]; ok {
			known = append(known, fmt.Sprintf("%s %s", name, duration(ms)))
		}
	}
	if known == nil {
		return ""
	}
	return ": " + strings.Join(known, ", ")
}

func rounds(w io.Writer, rounds []migrate.Round) {
	var rows [][]string
	for _, r := range rounds {
		when := "running"
		if r.Frozen {
			when = "frozen"
		}
		rows = append(rows, []string{
			fmt.Sprint(r.N), fmt.Sprint(r.Pages), size(r.Bytes), size(r.WireBytes), duration(r.MS), when,
		})
	}
	table(w, []string{"ROUND", "PAGES", "MEMORY", "WIRE", "TIME", "PROCESS"}, rows)
}
