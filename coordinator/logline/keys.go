package logline

// Keys of the coordinator's log records: one thing has one name everywhere.
const (
	KeyMigration = "migration"
	KeyEpoch     = "epoch"
	KeyHost      = "host"
	KeySide      = "side"
	KeyState     = "state"
	KeyReason    = "reason"
	KeyOrder     = "order"
	KeyOutcome   = "outcome"
	KeyServer    = "server"
	KeyAddress   = "address"
	KeyError     = "error"
)
