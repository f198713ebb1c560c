package resource

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// TestCheckHost compares machines that differ in one thing.
func TestCheckHost(t *testing.T) {
	describe := func() image.Host {
		return image.Host{
			Kernel: "6.1", CPU: image.CPU{Flags: []string{"avx2", "fpu", "hypervisor"}, XStateMask: 7},
			VDSO: image.VDSO{Parts: []image.VDSOPart{{Name: "[vdso]", Bytes: 8192}}, Digest: []byte{1}},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(here *image.Host)
		code   migrate.Code
		text   string
	}{
		{"equal", func(*image.Host) {}, "", ""},
		{"more features", func(h *image.Host) { h.CPU.Flags, h.CPU.XStateMask = append(h.CPU.Flags, "sse"), 0xff }, "", ""},
		{"a feature that no program uses", func(h *image.Host) { h.CPU.Flags = h.CPU.Flags[:2] }, "", ""},
		{"feature", func(h *image.Host) { h.CPU.Flags = h.CPU.Flags[1:] }, migrate.CodeCPU, "avx2"},
		{"vector state", func(h *image.Host) { h.CPU.XStateMask = 3 }, migrate.CodeCPU, "0x4"},
		{"vDSO code", func(h *image.Host) { h.VDSO.Digest = []byte{2} }, migrate.CodeVDSO, "6.1"},
		{"vDSO parts", func(h *image.Host) { h.VDSO.Parts = nil }, migrate.CodeVDSO, "6.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Check{Findings: &Findings{}, Source: describe(), Host: describe()}
			tt.change(&c.Host)
			checkHost(c)
			onlyBlocker(t, c.Blockers, tt.code, tt.text)
		})
	}
}

// TestCheckPrivilege asks for more than an agent may give that lacks
// CAP_SYS_RESOURCE: refused, and with --allow-degraded a warning.
func TestCheckPrivilege(t *testing.T) {
	own, err := ownOOMScore()
	if err != nil {
		t.Fatal(err)
	}
	limit := func(number int, hard uint64) (all []image.Limit) {
		for i := range number + 1 {
			all = append(all, image.Limit{Hard: min(hard, ownHardLimit(i))})
		}
		all[number].Hard = hard
		return all
	}
	const larger = 1 << 40 // than any pipe-max-size
	for name, tt := range map[string]struct {
		image image.Image
		text  string
	}{
		"score": {image.Image{Processes: []image.Process{{PID: 7, OOMScoreAdj: own - 1}}}, "oom_score_adj"},
		"limit": {image.Image{Processes: []image.Process{{PID: 7, OOMScoreAdj: own, Limits: limit(unix.RLIMIT_NOFILE, math.MaxUint64)}}}, "hard limit"},
		"pipe":  {image.Image{Files: []image.File{{Kind: image.FilePipe}}, Pipes: []image.Pipe{{Bytes: larger}}}, "pipe"},
	} {
		t.Run(name, func(t *testing.T) {
			look := func(accept bool) *Findings {
				c := &Check{Findings: &Findings{}, AllowDegraded: accept, Image: &tt.image}
				for i := range tt.image.Processes {
					scheduling.check(c, &tt.image.Processes[i])
					limits.check(c, &tt.image.Processes[i])
				}
				for i := range tt.image.Files {
					pipeEnd.check(c, &tt.image.Files[i])
				}
				return c.Findings
			}
			if ownCapabilities()&(1<<unix.CAP_SYS_RESOURCE) != 0 {
				onlyBlocker(t, look(false).Blockers, "", "")
				return
			}
			onlyBlocker(t, look(false).Blockers, migrate.CodePrivilege, tt.text)
			accepted := look(true)
			onlyBlocker(t, accepted.Blockers, "", "")
			onlyBlocker(t, accepted.Warnings, migrate.CodePrivilege, tt.text)
		})
	}
}

// A pipe that is larger than this process may make it is copied and made as
// large as it may.
func TestLargePipe(t *testing.T) {
	most := mostPipe()
	if most == math.MaxInt {
		t.Skip("this process may make a pipe of any size")
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if _, err := unix.Write(ends[1], []byte("content")); err != nil {
		t.Fatal(err)
	}
	content, err := pipeContent(ends[0], 2*most)
	if err != nil || len(content) != 1 || string(content[0]) != "content" {
		t.Fatalf("it holds %q, %v", content, err)
	}
	// Pieces of little more than half a page take a page each.
	big := make([]byte, 2049)
	var more [2]int
	if err := unix.Pipe2(more[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(more[0])
	defer unix.Close(more[1])
	for range 10 {
		if _, err := unix.Write(more[1], big); err != nil {
			t.Fatal(err)
		}
	}
	if content, err := copyOfPipe(more[0], 5*image.PageSize); err == nil {
		t.Errorf("of ten pages of content %d pieces are copied", len(content))
	}
	r := NewTreeRestore(&image.Image{Pipes: []image.Pipe{{Bytes: 2 * most, Content: content}}}, &Arrival{}, nil)
	defer r.Close()
	made, err := r.pipe(0)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := unix.Read(made[0], buf)
	if size, sizeErr := unix.FcntlInt(uintptr(made[0]), unix.F_GETPIPE_SZ, 0); err != nil || sizeErr != nil || string(buf[:n]) != "content" || size != most {
		t.Errorf("a pipe of %d bytes with %q, %v, %v", size, buf[:n], err, sizeErr)
	}
}

// TestCheckFiles has files that are not here as they are at the source.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	shared := image.Identity{Mode: unix.S_IFREG, Bytes: 4, Written: true, Device: st.Dev, Inode: 1, Parent: st.Ino}
	for _, tt := range []struct {
		name string
		path string
		id   image.Identity
		code migrate.Code
	}{
		{"gone since", path + "2", shared, ""},
		{"replaced since", path, shared, ""},
		{"missing", path + "2", image.Identity{Mode: unix.S_IFREG}, migrate.CodeFileMissing},
		{"another kind", dir, image.Identity{Mode: unix.S_IFREG}, migrate.CodeFileDiffers},
		{"another size", path, image.Identity{Mode: unix.S_IFREG, Bytes: 5, Digest: []byte{1}}, migrate.CodeFileDiffers},
		{"other content", path, image.Identity{Mode: unix.S_IFREG, Bytes: 4, Digest: []byte{1}}, migrate.CodeFileDiffers},
		{"written", path, image.Identity{Mode: unix.S_IFREG, Bytes: 4, Written: true}, migrate.CodeFileNotShared},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Check{
				Findings: &Findings{}, Ctx: t.Context(), Source: image.Host{BootID: "there"}, Host: image.Host{BootID: "here"},
				Image: &image.Image{}, Digests: NewDigests(),
			}
			if tt.id.Parent != 0 { // both see the directory
				c.Source.BootID = c.Host.BootID
			}
			checkIdentity(c, &image.File{Path: tt.path, Identity: &tt.id})
			onlyBlocker(t, c.Blockers, tt.code, tt.path)
		})
	}
}

func onlyBlocker(t *testing.T, all []migrate.Finding, code migrate.Code, text string) {
	t.Helper()
	switch {
	case code == "" && len(all) == 0:
	case len(all) != 1 || all[0].Code != code || !strings.Contains(all[0].Detail, text) || all[0].Hint == "":
		t.Errorf("blockers %v instead of %q with %q and a hint", all, code, text)
	}
}

// A listener finds its address and port free at the destination, or is told what
// is in its way.
func TestCheckTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(listener.Addr().String())
	check := func(local netip.AddrPort, code migrate.Code, text string) {
		t.Helper()
		c := &Check{Findings: &Findings{}, Ctx: t.Context(), Image: &image.Image{}}
		c.CheckFile(&image.File{Kind: image.FileTCP, TCP: &tcprepair.Socket{State: tcprepair.Listen, Local: local, Backlog: 5}})
		onlyBlocker(t, c.Blockers, code, text)
	}
	check(address, migrate.CodeAddressTaken, address.String())
	check(netip.MustParseAddrPort("192.0.2.1:80"), migrate.CodeAddressMissing, "192.0.2.1:80")
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	check(address, "", "")
}

// TestCheckCode has a thread that would run 32-bit code if it went on. It does
// not, for not every kernel lets it.
func TestCheckCode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	tracer := parasite.NewTracer()
	t.Cleanup(func() { _ = tracer.Close() })
	p, err := tracer.Seize(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	thread := p.Thread(p.PID())
	d := &TreeDump{Findings: &Findings{}}
	if err := d.CheckCode([]*parasite.Process{p}); err != nil {
		t.Errorf("64-bit code: %v", err)
	}
	regs := thread.Registers()
	regs.Cs = 0x23 // __USER32_CS
	if err := thread.SetRegisters(regs); err != nil {
		t.Fatal(err)
	}
	err = d.CheckCode([]*parasite.Process{p})
	_, callErr := thread.Syscall(t.Context(), unix.SYS_GETPID)
	if !errors.Is(err, parasite.ErrCompat) || !errors.Is(callErr, parasite.ErrCompat) {
		t.Errorf("32-bit code: %v, and a call in it: %v", err, callErr)
	}
	onlyBlocker(t, d.Blockers, migrate.CodeCompat, fmt.Sprint(p.PID()))
	// It must not go on.
	if err := errors.Join(cmd.Process.Kill(), p.Detach()); err != nil {
		t.Fatal(err)
	}
}
