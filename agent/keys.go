package agent

// Keys of the agent's log records: one thing has one name everywhere, the same
// as in the coordinator's.
const (
	keyMigration = "migration"
	keyEpoch     = "epoch"
	keyHost      = "host"
	keySide      = "side"
	keyPID       = "pid"
	keyPhase     = "phase"
	keyReason    = "reason"
	keyOutcome   = "outcome"
	keyAddress   = "address"
	keyError     = "error"
)
