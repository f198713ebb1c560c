package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pagurus-project/pagurus/"

var (
	only  = flag.String("guest.packages", "", "of the packages, only those that match this regular expression")
	tests = flag.String("guest.run", "", "of their tests, only those that match this one")
)

// onGuest are the packages whose tests depend on what the kernel is like.
var onGuest = []struct {
	pkg string
	// run and skip choose tests: an emulated processor is too slow for some.
	run, skip string
	// must are tests that have to pass there, not to be skipped: what this
	// kernel is booted for.
	must []string
}{
	{pkg: "migrate/dirty", must: []string{"TestWrittenPagesOnly/soft-dirty", "TestPagesThatVanish/soft-dirty", "TestRandomOperations/soft-dirty"}},
	{pkg: "migrate/procfs"},
	{pkg: "migrate/resource", run: "^TestGlance$", must: []string{"TestGlance/IPv4", "TestGlance/IPv6", "TestGlance/mapped"}},
	{pkg: "parasite"},
	{pkg: "migrate/source", run: "^(TestReplica|TestInspectRefuses)$", must: []string{"TestReplica", "TestInspectRefuses"}},
	{pkg: "agent", run: "^TestKernelThread$", must: []string{"TestKernelThread"}},
	{pkg: "tcprepair", must: []string{"TestStates", "TestFullQueues"}},
	{pkg: "tcprepair/udp", must: []string{"TestQueue", "TestGroups"}},
	{pkg: "tcprepair/forward", skip: "^TestMany$", must: []string{"TestMovedAway", "TestMovedOn", "TestBothGuests"}},
	{pkg: "migrate/unixsock", must: []string{"TestPublish", "TestAbstract", "TestList"}},
	{pkg: "migrate/target", skip: "^TestMoveWorkloads$/^float$", must: []string{"TestMoveWorkloads/memory"}},
}

// modules are what the tests need, each after those that it depends on.
var modules = []string{
	"net/unix/unix_diag.ko", "net/netlink/netlink_diag.ko", "net/ipv4/inet_diag.ko", "net/ipv4/tcp_diag.ko", "net/ipv4/udp_diag.ko", "drivers/net/veth.ko",
	"net/llc/llc.ko", "net/802/stp.ko", "net/bridge/bridge.ko",
	"lib/libcrc32c.ko", "net/netfilter/nfnetlink.ko", "net/netfilter/nf_tables.ko",
	"net/netfilter/nf_dup_netdev.ko", "net/netfilter/nft_dup_netdev.ko", "net/netfilter/nft_fwd_netdev.ko",
}

// build makes test binaries and programs without cgo.
func build(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

var (
	result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	begun  = regexp.MustCompile(`^=== RUN +[^/]+$`)
)

// without is what a program of tests said, without the tests that went well: each's words from
// its first line to its results. What comes behind belongs to the program, as when it panics.
func without(lines []string) []string {
	var kept, block []string
	results := false // of a test that went well
	for _, line := range lines {
		found := result.FindStringSubmatch(line)
		switch top := found != nil && line[0] != ' '; {
		case begun.MatchString(line):
			kept, block, results = append(kept, block...), []string{line}, false
		case top && found[1] != "FAIL":
			block, results = nil, true
		case results && found != nil:
		default:
			block, results = append(block, line), false
		}
	}
	return append(kept, block...)
}

// The kernel of the distribution has soft-dirty and lacks what newer ones have:
// everything that touches the kernel works there too.
func TestDebianKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine by software emulation")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("no tests on another kernel: %v (Debian: qemu-system-x86)", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	kernel, err := DebianKernel(t.Context(), "linux-image-cloud-amd64", filepath.Join(cache, "pagurus", "kernels"))
	if errors.Is(err, ErrUnavailable) {
		t.Skipf("no tests on another kernel: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := kernel.Config()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s", kernel.Release)
	if !strings.Contains(config, "\nCONFIG_MEM_SOFT_DIRTY=y\n") {
		t.Errorf("kernel %s has no soft-dirty bits", kernel.Release)
	}

	dir := t.TempDir()
	guest := Guest{
		Kernel:   kernel,
		Modules:  modules,
		MemoryMB: 3072,
		Built:    map[string]string{module + "e2e/workload": filepath.Join(dir, "workload")},
	}
	build(t, "build", "-o", filepath.Join(dir, "workload"), "./e2e/workload")
	must := make(map[string][]string)
	chosen, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range onGuest {
		if !chosen.MatchString(p.pkg) {
			continue
		}
		file := filepath.Join(dir, strings.ReplaceAll(p.pkg, "/", "-")+".test")
		build(t, "test", "-c", "-o", file, "./"+p.pkg)
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%s has no tests: %v", p.pkg, err)
		}
		if *tests != "" {
			p.run = *tests
		} else {
			must[p.pkg] = p.must
		}
		guest.Tests = append(guest.Tests, TestBinary{
			Package: p.pkg, File: file, Sources: filepath.Join("../..", p.pkg),
			Args: []string{"-test.v", "-test.short", "-test.timeout=20m", "-test.run=" + p.run, "-test.skip=" + p.skip},
		})
	}

	say := func(line string) {
		if testing.Verbose() { // those that fail are told in any case
			t.Log(line)
		}
	}
	err = guest.Boot(t.Context(), dir, say, func(o Outcome) {
		t.Run(o.Package, func(t *testing.T) {
			var passed []string
			for _, line := range o.Lines {
				if found := result.FindStringSubmatch(line); found != nil && found[1] == "PASS" {
					passed = append(passed, found[2])
				}
			}
			for _, name := range must[o.Package] {
				if !slices.Contains(passed, name) {
					t.Errorf("%s did not pass", name)
				}
			}
			if o.Status != "0" || len(passed) == 0 {
				t.Errorf("ended with %s, %d tests passed\n%s", o.Status, len(passed), strings.Join(without(o.Lines), "\n"))
			}
		})
	})
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Error(err)
	}
}

// What the console says is taken apart as it was put together, whatever the
// programs write in between.
func TestListen(t *testing.T) {
	const said = "SeaBIOS\r\n\r\n" +
		"\n" + MarkBegin + "one\r\n=== RUN TestA\r\n--- PASS: TestA (0.00s)\r\n\n" + MarkEnd + "0\n" +
		"between\n" +
		"\n" + MarkBegin + "two\nno newline at the end\n" + MarkEnd + "exit status 2\n" +
		"\n" + MarkBegin + "three\nlast words\n"
	var got []string
	ended, err := listen(strings.NewReader(said), func(string) {}, func(o Outcome) {
		got = append(got, fmt.Sprintf("%s %q %q", o.Package, o.Status, o.Lines))
	})
	if err != nil || ended != 2 {
		t.Errorf("%d programs ended, %v", ended, err)
	}
	want := []string{
		`one "0" ["=== RUN TestA" "--- PASS: TestA (0.00s)" ""]`,
		`two "exit status 2" ["no newline at the end"]`,
		`three "the guest ended" ["last words"]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	_, err = listen(strings.NewReader(MarkTrap+"no ttyS1\n"), func(string) {}, func(Outcome) {})
	if err == nil || err.Error() != "no ttyS1" {
		t.Errorf("trap: %v", err)
	}
}

// Of what a program of tests said, its failures are told.
func TestWithout(t *testing.T) {
	said := []string{
		"=== RUN   TestA", "=== RUN   TestA/one", "a", "--- PASS: TestA (0.00s)", "    --- PASS: TestA/one (0.00s)",
		"=== RUN   TestB", "=== RUN   TestB/one", "b", "--- FAIL: TestB (0.00s)", "    --- FAIL: TestB/one (0.00s)",
		"=== RUN   TestC", "c", "--- SKIP: TestC (0.00s)",
		"=== RUN   TestD", "d", "panic: D", "goroutine 1 [running]:",
	}
	if got, want := without(said), append(slices.Clone(said[5:10]), said[13:]...); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	said = append(said[:5:5], "panic: Log in goroutine after TestA has completed")
	if got := without(said); !slices.Equal(got, said[5:]) {
		t.Errorf("%q, want %q", got, said[5:])
	}
}

// Where there is no such package, there is no guest, and no failure.
func TestUnknownKernel(t *testing.T) {
	_, err := DebianKernel(context.Background(), "linux-image-of-nobody", t.TempDir())
	if !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}
