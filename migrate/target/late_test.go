package target_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// lateProgram waits for three signals and writes what they say.
const lateProgram = `
import os, signal, sys, time
dir = sys.argv[1]
wanted = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
open(dir + "/ready", "w").close()
while not os.path.exists(dir + "/check"): time.sleep(0.01)
got = [signal.sigtimedwait(wanted, 10) for _ in range(3)]
with open(dir + "/new", "w") as f: f.write(repr([(i.si_signo, i.si_code) if i else None for i in got]))
os.rename(dir + "/new", dir + "/result")
time.sleep(1000)
`

// Signals that reach the frozen process, sent in each of three ways, are there
// when it runs at the destination.
func TestLateSignals(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	host := newSource(t)
	dir := t.TempDir()
	pid := startProgram(t, filepath.Join(dir, "log"), python, "-c", lateProgram, dir)
	exists := func(name string) func() bool {
		return func() bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil
		}
	}
	await(t, exists("ready"))
	moveWhile(t, host, pid, migrate.Options{}.WithDefaults(), func() {
		const realtime = 34 // SIGRTMIN of glibc
		if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
			t.Error(err)
		}
		if err := unix.Tgkill(pid, pid, unix.SIGUSR2); err != nil {
			t.Error(err)
		}
		info := make([]byte, 128)
		binary.NativeEndian.PutUint32(info, realtime)
		binary.NativeEndian.PutUint32(info[8:], ^uint32(0)) // SI_QUEUE
		if _, _, errno := unix.Syscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(pid), realtime, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
			t.Error(errno)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "check"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, exists("result"))
	// The thread's own comes first, then those of the process by their numbers.
	// That glibc shows SI_USER for tgkill is its own doing.
	if said := read(t, filepath.Join(dir, "result")); said != "[(12, 0), (10, 0), (34, -1)]" {
		t.Errorf("the program got %s", said)
	}
}
