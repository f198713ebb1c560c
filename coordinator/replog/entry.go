package replog

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/pagurus-project/pagurus/migrate"
	raftlogv1 "github.com/pagurus-project/pagurus/proto/raftlog/v1"
)

// errUnreadable says that bytes of the log or of a snapshot are damaged or of
// a newer release.
var errUnreadable = errors.New("not readable by this release")

// encodeEntry makes the log's command out of an event of a migration.
func encodeEntry(id string, event migrate.Event) ([]byte, error) {
	entry := &raftlogv1.Entry{Migration: id}
	switch e := event.(type) {
	case migrate.Created:
		entry.Migration, entry.At = e.ID, timestamp(e.At)
		entry.Event = &raftlogv1.Entry_Created{Created: &raftlogv1.Created{
			Key: e.Key, Pid: int64(e.PID), From: e.From, To: e.To,
			Options: optionsToProto(e.Options), Blockers: findingsToProto(e.Blockers),
		}}
	case migrate.PreflightDone:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_PreflightDone{PreflightDone: &raftlogv1.PreflightDone{
			Epoch: e.Epoch, Command: e.Command, Blockers: findingsToProto(e.Blockers),
			Warnings: findingsToProto(e.Warnings), PhasesMs: e.PhasesMS, Reserved: e.Reserved, Addresses: prefixesToProto(e.Addresses),
		}}
	case migrate.Decided:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_Decided{Decided: &raftlogv1.Decided{
			Decision: string(e.Decision), Reason: e.Reason, Blockers: findingsToProto(e.Blockers),
			Prepared: e.Prepared, Promised: e.Promised, Measured: measuredToProto(e.Measured),
			Rehearsed: e.Rehearsed, Source: string(e.Source), Lost: e.Lost,
		}}
	case migrate.Running:
		entry.Event = &raftlogv1.Entry_Running{Running: &raftlogv1.Running{DowntimeMs: e.DowntimeMS, PhasesMs: e.PhasesMS}}
	case migrate.NeverRan:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_NeverRan{NeverRan: &raftlogv1.NeverRan{Reason: e.Reason}}
	case migrate.Fenced:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_Fenced{Fenced: &raftlogv1.Fenced{By: e.By}}
	case migrate.SourceSettled:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_SourceSettled{SourceSettled: &raftlogv1.SourceSettled{
			Outcome: string(e.Outcome), DowntimeMs: e.DowntimeMS, PhasesMs: e.PhasesMS, Lost: e.Lost,
		}}
	case migrate.TargetSettled:
		entry.Event = &raftlogv1.Entry_TargetSettled{TargetSettled: &raftlogv1.TargetSettled{Outcome: string(e.Outcome)}}
	case migrate.Forgotten:
		entry.Event = &raftlogv1.Entry_Forgotten{Forgotten: &raftlogv1.Forgotten{}}
	default:
		return nil, fmt.Errorf("encoding %T: no such entry", event)
	}
	data, err := proto.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", event, err)
	}
	return data, nil
}

// A command is what an entry holds: an event of a migration, or of an address.
type command struct {
	id      string // of the migration
	event   migrate.Event
	address migrate.AddressEvent
}

// decodeEntry is the reverse of encodeEntry and encodeAddress.
func decodeEntry(data []byte) (command, error) {
	var entry raftlogv1.Entry
	if err := proto.Unmarshal(data, &entry); err != nil {
		return command{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if event, ok, err := decodeAddress(&entry); ok || err != nil {
		return command{address: event}, err
	}
	event, err := decodeEvent(&entry)
	return command{id: entry.GetMigration(), event: event}, err
}

func decodeEvent(entry *raftlogv1.Entry) (migrate.Event, error) {
	at := timeOf(entry.GetAt())
	switch e := entry.GetEvent().(type) {
	case *raftlogv1.Entry_Created:
		m := e.Created
		options, err := optionsFromProto(m.GetOptions())
		return migrate.Created{
			ID: entry.GetMigration(), Key: m.GetKey(), PID: int(m.GetPid()), From: m.GetFrom(), To: m.GetTo(),
			Options: options, Blockers: findingsFromProto(m.GetBlockers()), At: at,
		}, err
	case *raftlogv1.Entry_PreflightDone:
		m := e.PreflightDone
		addresses, err := prefixesFromProto(m.GetAddresses())
		return migrate.PreflightDone{
			Epoch: m.GetEpoch(), Command: m.GetCommand(), Blockers: findingsFromProto(m.GetBlockers()),
			Warnings: findingsFromProto(m.GetWarnings()), PhasesMS: m.GetPhasesMs(), Reserved: m.GetReserved(),
			Addresses: addresses, At: at,
		}, err
	case *raftlogv1.Entry_Decided:
		m := e.Decided
		return migrate.Decided{
			Decision: migrate.Decision(m.GetDecision()), Reason: m.GetReason(), Blockers: findingsFromProto(m.GetBlockers()),
			Prepared: m.GetPrepared(), Promised: m.GetPromised(), Measured: measuredFromProto(m.GetMeasured()),
			Rehearsed: m.GetRehearsed(), Source: migrate.Outcome(m.GetSource()), Lost: m.GetLost(), At: at,
		}, nil
	case *raftlogv1.Entry_Running:
		return migrate.Running{DowntimeMS: e.Running.GetDowntimeMs(), PhasesMS: e.Running.GetPhasesMs()}, nil
	case *raftlogv1.Entry_NeverRan:
		return migrate.NeverRan{Reason: e.NeverRan.GetReason(), At: at}, nil
	case *raftlogv1.Entry_Fenced:
		return migrate.Fenced{By: e.Fenced.GetBy(), At: at}, nil
	case *raftlogv1.Entry_SourceSettled:
		m := e.SourceSettled
		return migrate.SourceSettled{
			Outcome: migrate.Outcome(m.GetOutcome()), DowntimeMS: m.GetDowntimeMs(), PhasesMS: m.GetPhasesMs(), Lost: m.GetLost(), At: at,
		}, nil
	case *raftlogv1.Entry_TargetSettled:
		return migrate.TargetSettled{Outcome: migrate.Outcome(e.TargetSettled.GetOutcome())}, nil
	case *raftlogv1.Entry_Forgotten:
		return migrate.Forgotten{}, nil
	}
	return nil, fmt.Errorf("%w: an event of a kind that it does not know", errUnreadable)
}
