package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// A Guest is what to boot and what to run there.
type Guest struct {
	Kernel   *Kernel
	Modules  []string // paths below kernel/, as in modules.dep; what is built in is left out
	Tests    []TestBinary
	Built    map[string]string // package path to the program built from it
	MemoryMB int
}

// A TestBinary was made by go test -c, without cgo.
type TestBinary struct {
	Package string // its path
	File    string // on this machine
	Sources string // the package's directory; its testdata go along
	Args    []string
}

// Outcome is how one test binary ended.
type Outcome struct {
	Package string
	Status  string   // "0", another exit status, or what else happened
	Lines   []string // what it said
}

// Boot runs the guest until it has run everything, calls each for every test binary
// that ended and tells progress line by line. dir is for what it needs meanwhile;
// console.log there keeps the kernel's words.
func (g *Guest) Boot(ctx context.Context, dir string, progress func(line string), each func(Outcome)) error {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return fmt.Errorf("%w: %w (Debian: qemu-system-x86)", ErrUnavailable, err)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := g.pack(ctx, dir, initrd); err != nil {
		return err
	}
	console := filepath.Join(dir, "console.log")
	cmd := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", "tcg,thread=multi", "-smp", "2", "-m", fmt.Sprint(g.MemoryMB),
		// Five levels of page tables are as slow as they are unusual.
		"-cpu", "max,la57=off",
		"-kernel", g.Kernel.Image(), "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
		"-serial", "file:"+console, "-serial", "stdio")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var problem strings.Builder
	cmd.Stderr = &problem
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	ended, readErr := listen(out, progress, each)
	// What is left is only to be waited for.
	_, _ = io.Copy(io.Discard, out)
	waitErr := cmd.Wait()
	if err := errors.Join(readErr, waitErr); err != nil {
		return fmt.Errorf("guest: %w %s\n%s", err, problem.String(), tail(console))
	}
	if ended != len(g.Tests) {
		return fmt.Errorf("guest ended after %d of %d test binaries:\n%s", ended, len(g.Tests), tail(console))
	}
	return nil
}

// listen takes the console's lines apart.
func listen(r io.Reader, progress func(string), each func(Outcome)) (ended int, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	var now *Outcome
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if name, ok := strings.CutPrefix(line, MarkBegin); ok {
			now = &Outcome{Package: name}
			progress(name)
		} else if status, ok := strings.CutPrefix(line, MarkEnd); ok && now != nil {
			now.Status = status
			each(*now)
			now = nil
			ended++
		} else if why, ok := strings.CutPrefix(line, MarkTrap); ok {
			return ended, errors.New(why)
		} else if now != nil {
			now.Lines = append(now.Lines, line)
			progress(line)
		}
	}
	if now != nil { // the guest went down with it
		now.Status = "the guest ended"
		each(*now)
	}
	return ended, lines.Err()
}

// tail is the end of a file, for a message.
func tail(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-4000):])
}

// pack writes the initramfs.
func (g *Guest) pack(ctx context.Context, dir, to string) error {
	guest := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-o", guest, "github.com/pagurus-project/pagurus/e2e/vm/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the guest's init: %w\n%s", err, out)
	}
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	a := newArchive(file)
	a.device("dev/console", 5, 1) // the kernel opens it for init
	a.copyFile("init", 0o755, guest)
	a.link("bin/go", "/init")
	for _, mountPoint := range []string{"proc", "sys", "tmp", "run", "root", "etc", "dev"} {
		a.dir(mountPoint)
	}
	var plan Plan
	for _, module := range g.Modules {
		if from := g.Kernel.module(module); from != "" {
			name := path.Join("modules", filepath.Base(from))
			a.copyFile(name, 0o644, from)
			plan.Modules = append(plan.Modules, "/"+name)
		}
	}
	for name, from := range g.Built {
		a.copyFile(path.Join(BuiltDir[1:], name), 0o755, from)
	}
	for _, test := range g.Tests {
		where := path.Join("src", test.Package)
		name := path.Base(test.Package) + ".test"
		a.copyFile(path.Join(where, name), 0o755, test.File)
		a.copyDir(path.Join(where, "testdata"), filepath.Join(test.Sources, "testdata"))
		plan.Programs = append(plan.Programs, Program{
			Name: test.Package, Path: "/" + path.Join(where, name), Dir: "/" + where, Args: test.Args,
		})
	}
	content, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	a.file(PlanFile[1:], 0o644, string(content))
	return errors.Join(a.close(), file.Close())
}
