package resource

import (
	"github.com/pagurus-project/pagurus/migrate"
)

// Findings collects what stands in the way and what the operator should know.
type Findings struct {
	Blockers []migrate.Finding
	Warnings []migrate.Finding
}

// Block records a blocker.
func (f *Findings) Block(code migrate.Code, hint, format string, args ...any) {
	f.Blockers = append(f.Blockers, migrate.Findingf(code, hint, format, args...))
}

// Warn records a warning.
func (f *Findings) Warn(code migrate.Code, hint, format string, args ...any) {
	f.Warnings = append(f.Warnings, migrate.Findingf(code, hint, format, args...))
}

// Degrade records that something would be restored with less than it had: a
// warning if the operator accepts that, else a blocker.
func (f *Findings) Degrade(accepted bool, code migrate.Code, hint, format string, args ...any) {
	if accepted {
		f.Warn(code, hint, format, args...)
		return
	}
	f.Block(code, hint+"; --allow-degraded accepts it", format, args...)
}
