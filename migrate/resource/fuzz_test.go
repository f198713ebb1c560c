package resource

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/procfs"
)

func FuzzParseWatch(f *testing.F) {
	f.Add("        5 events:       19 data:                5  pos:0 ino:2 sdev:f")
	f.Add("12 events: 40000001 data: ffffffffffffffff")
	f.Add("")
	f.Fuzz(func(t *testing.T, value string) {
		w, _, err := parseWatch(value)
		if err != nil {
			return
		}
		if w.FD < 0 {
			t.Errorf("%q: descriptor %d", value, w.FD)
		}
		again, _, err := parseWatch(fmt.Sprintf("%d events: %x data: %x", w.FD, w.Events, w.Data))
		if err != nil || again != w {
			t.Errorf("%q: %+v, and written again %+v, %v", value, w, again, err)
		}
	})
}

func FuzzParseOffsets(f *testing.F) {
	f.Add("monotonic           0         0\nboottime            0         0\n")
	f.Add("monotonic       -3600 500000000\nboottime        86400         1\n")
	f.Add("monotonic 9223372036854775807 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := parseOffsets(text)
		if err != nil {
			return
		}
		line := func(name string, offset int64) string {
			seconds, rest := offset/1e9, offset%1e9
			if rest < 0 {
				seconds, rest = seconds-1, rest+1e9
			}
			return fmt.Sprintf("%s %d %d\n", name, seconds, rest)
		}
		again, err := parseOffsets(line("monotonic", o.monotonic) + line("boottime", o.boottime))
		if err != nil || again != o {
			t.Errorf("%q: %+v, and written again %+v, %v", strings.TrimSpace(text), o, again, err)
		}
	})
}

func FuzzParseInotifyWatch(f *testing.F) {
	f.Add("wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d")
	f.Add("wd:1 ino:2 sdev:2b mask:2 ignored_mask:0 fhandle-bytes:0 fhandle-type:0 f_handle:")
	f.Fuzz(func(t *testing.T, value string) {
		w, file, err := parseInotifyWatch(value)
		if err != nil {
			return
		}
		if w.Number < 0 || w.Mask&^watchMask != 0 {
			t.Errorf("%q: %+v", value, w)
		}
		again, same, err := parseInotifyWatch(fmt.Sprintf("wd:%d ino:%x sdev:%x mask:%x fhandle-type:%x f_handle:%x", w.Number, file.inode,
			uint64(unix.Major(file.device))<<20|uint64(unix.Minor(file.device)), w.Mask, uint32(file.handle.Type()), file.handle.Bytes()))
		if err != nil || again != w || same.device != file.device || same.inode != file.inode ||
			same.handle.Type() != file.handle.Type() || !bytes.Equal(same.handle.Bytes(), file.handle.Bytes()) {
			t.Errorf("%q: %+v of %+v, and written again %+v of %+v, %v", value, w, file, again, same, err)
		}
	})
}

func FuzzMountPoints(f *testing.F) {
	const some = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n37 35 0:21 / /run rw - tmpfs tmpfs rw\n"
	f.Add(some, uint32(98), uint32(0))
	f.Add(some, uint32(0), uint32(21))
	f.Fuzz(func(t *testing.T, mountinfo string, major, minor uint32) {
		line := fmt.Sprintf("1 2 %d:%d / /here rw - x y z\n", major&0xfff, minor&0xfffff)
		device := unix.Mkdev(major&0xfff, minor&0xfffff)
		before := mountPoints(mountinfo, device)
		if after := mountPoints(line+mountinfo, device); !slices.Equal(after, append([]string{"/here"}, before...)) {
			t.Errorf("%q: %q, and with one more %q", mountinfo, before, after)
		}
	})
}

func FuzzParseTimerFD(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t31\nclockid: 1\nticks: 3\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := procfs.ParseFDInfo(data)
		if err != nil {
			return
		}
		timer, err := parseTimerFD(&info)
		if err != nil {
			return
		}
		info, err = procfs.ParseFDInfo(fmt.Appendf(nil, "pos:\t0\nflags:\t02\nclockid: %d\nticks: %d\nsettime flags: %o\n", timer.Clock, timer.Ticks, timer.Flags))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseTimerFD(&info); err != nil || *again != *timer {
			t.Errorf("%q: %+v, and written again %+v, %v", data, timer, again, err)
		}
	})
}

func FuzzParseControl(f *testing.F) {
	credentials := unix.UnixCredentials(&unix.Ucred{Pid: 7, Uid: 1000, Gid: 100})
	rights := unix.UnixRights(3, 4)
	f.Add(credentials)
	f.Add(rights)
	f.Add(slices.Concat(credentials, rights))
	pidfd := slices.Clone(unix.UnixRights(5))
	binary.NativeEndian.PutUint32(pidfd[12:], scmPIDFD)
	f.Add(pidfd)
	f.Fuzz(func(t *testing.T, control []byte) {
		m, passed, others, err := parseControl(control)
		if 4*(len(passed)+len(others)) > len(control) {
			t.Errorf("%x: %d and %d descriptors", control, len(passed), len(others))
		}
		// None of what has come is forgotten, whatever comes behind it.
		more, morePassed, moreOthers, moreErr := parseControl(slices.Concat(rights, control))
		if err == nil && (moreErr != nil || more.PID != m.PID || !slices.Equal(morePassed, append([]int{3, 4}, passed...)) || !slices.Equal(moreOthers, others)) {
			t.Errorf("%x: %d and %d, and with two more %d and %d, %v", control, passed, others, morePassed, moreOthers, moreErr)
		}
		if err != nil {
			return
		}
		again, _, _, err := parseControl(unix.UnixCredentials(&unix.Ucred{Pid: int32(m.PID), Uid: m.UID, Gid: m.GID}))
		if err != nil || again.PID != m.PID || again.UID != m.UID || again.GID != m.GID {
			t.Errorf("%x: %+v, and written again %+v, %v", control, m, again, err)
		}
	})
}

func FuzzParseCPUInfo(f *testing.F) {
	f.Add("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: fpu vme de fpu\nbugs\t\t: x\n\nprocessor\t: 1\nflags\t\t: other\n")
	f.Fuzz(func(t *testing.T, text string) {
		vendor, flags := parseCPUInfo(text)
		if !slices.IsSorted(flags) || len(slices.Compact(slices.Clone(flags))) != len(flags) {
			t.Errorf("%q: flags %q", text, flags)
		}
		again, same := parseCPUInfo("vendor_id\t: " + vendor + "\nflags\t\t: " + strings.Join(flags, " ") + "\n")
		if again != vendor || !slices.Equal(same, flags) {
			t.Errorf("%q: %q %q, and written again %q %q", text, vendor, flags, again, same)
		}
	})
}

func FuzzParseProcessors(f *testing.F) {
	f.Add("0-3,8\n")
	f.Add("0")
	f.Add("0-99999999999,3-1")
	f.Fuzz(func(t *testing.T, text string) {
		all := parseProcessors(text)
		for i, cpu := range all {
			if cpu < 0 || cpu >= maxProcessors || i > 0 && cpu <= all[i-1] {
				t.Fatalf("%q: %d", text, all)
			}
		}
	})
}

func FuzzParseRestarted(f *testing.F) {
	f.Add("219 0x7ffd 0x1 0x0 0x0 0x0 0x0 0x7ffd1234 0x7f0012345678\n")
	f.Add("running\n")
	f.Add("-1 0x7ffd1234 0x7f0012345678\n")
	f.Fuzz(func(t *testing.T, text string) {
		first, restarts, err := parseRestarted(text)
		if err != nil || !restarts {
			return
		}
		if again, restarts, err := parseRestarted(fmt.Sprintf("219 %#x", first)); again != first || !restarts || err != nil {
			t.Errorf("%q: %#x, and written again %#x, %t, %v", text, first, again, restarts, err)
		}
	})
}
