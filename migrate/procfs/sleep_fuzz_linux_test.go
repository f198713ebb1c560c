package procfs

import (
	"encoding/binary"
	"slices"
	"testing"
)

// Whatever lies on a stack: what is found there belongs to the thread.
func FuzzSleepRecords(f *testing.F) {
	layout := sleeperLayout{expires: 24, function: 32, state: 48, task: 56, bytes: 64}
	record := make([]byte, recordBytes)
	binary.NativeEndian.PutUint64(record[recordTID:], 7)
	binary.NativeEndian.PutUint64(record[recordTask:], 0xffff888000000000)
	binary.NativeEndian.PutUint64(record[recordLen:], 256)
	stack := record[recordStack:]
	binary.NativeEndian.PutUint64(stack[64+24:], 1e9)
	binary.NativeEndian.PutUint64(stack[64+32:], 0xffffffff81000000)
	stack[64+48] = 1
	binary.NativeEndian.PutUint64(stack[64+56:], 0xffff888000000000)
	if all := sleepRecords(record); len(all) != 1 || all[0].tid != 7 || len(all[0].stack) != 256 {
		f.Fatalf("the seed is read as %+v", all)
	}
	f.Add(record)
	f.Add(slices.Concat(record, record[:100]))
	f.Fuzz(func(t *testing.T, data []byte) {
		all := sleepRecords(data)
		if len(all) != len(data)/recordBytes {
			t.Errorf("%d records in %d bytes", len(all), len(data))
		}
		for i := range all {
			if len(all[i].stack) > stackPart {
				t.Errorf("a stack of %d bytes", len(all[i].stack))
			}
			n := 0
			for range all[i].timers(&layout) {
				n++
			}
			if n > len(all[i].stack)/8 {
				t.Errorf("%d timers on a stack of %d bytes", n, len(all[i].stack))
			}
		}
	})
}
