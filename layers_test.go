// Package pagurus_test holds the tree to the rules of ARCHITECTURE.md: who may
// import whom, and where what is dangerous may stand.
package pagurus_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pagurus-project/pagurus/"

// A layer says which packages of the project the packages of a pattern may
// import. A pattern is a package, or a package and all below it ("x/...").
type layer struct {
	pattern string
	may     []string
}

// Of several layers that a package fits, the first counts.
var layers = []layer{
	// Libraries on their own, and the test twins beside them.
	{"migrate", nil},
	{"migrate/image", []string{"tcprepair", "tcprepair/inet", "tcprepair/packet", "tcprepair/raw", "tcprepair/udp"}}, // whose sockets are plain data
	{"pageserver", nil},
	{"pageserver/...", []string{"pageserver"}},
	{"parasite", nil},
	{"parasite/...", []string{"parasite"}},
	{"tcprepair", []string{"tcprepair/inet", "tcprepair/kernel"}},
	{"tcprepair/inet", nil},
	{"tcprepair/kernel", nil},
	{"tcprepair/forward", []string{"tcprepair/hold"}},
	{"tcprepair/...", []string{"tcprepair", "tcprepair/inet", "tcprepair/kernel"}},
	{"trust", nil},
	{"proto/...", nil},

	// The engine. Its halves meet over the wire alone.
	{"migrate/freezer", nil},
	{"migrate/unixsock", nil},
	{"migrate/wire", []string{"migrate/image"}},
	{"migrate/procfs", []string{"migrate/image", "tcprepair/kernel"}},
	{"migrate/dirty", []string{"migrate/image", "migrate/procfs", "pageserver"}},
	{"migrate/resource", []string{"migrate", "migrate/image", "migrate/procfs", "migrate/unixsock", "parasite", "tcprepair", "tcprepair/acceptqueue", "tcprepair/forward", "tcprepair/hold", "tcprepair/inet", "tcprepair/packet", "tcprepair/raw", "tcprepair/udp"}},
	{"migrate/source", engine},
	{"migrate/target", engine},

	// The daemons.
	{"agent/...", []string{
		"agent/...", "coordinator/logline", "coordinator/member", "migrate/...", "pageserver", "parasite",
		"proto/migrate/...", "tcprepair", "tcprepair/forward", "tcprepair/hold", "trust",
	}},
	{"coordinator/logline", nil},
	{"coordinator/member", []string{"coordinator/logline", "trust"}},
	{"coordinator/api", []string{"migrate", "trust"}}, // what a client needs: no raft, no gRPC
	{"coordinator/...", []string{"coordinator/...", "migrate", "proto/...", "trust"}},
	{"cmd/migrate-agent", []string{"agent", "coordinator/logline", "migrate/...", "trust"}},
	{"cmd/migrate-coordinator", []string{"coordinator", "coordinator/logline", "trust"}},
	{"cmd/migratectl", []string{"coordinator/api", "e2e/lab", "migrate", "trust"}},

	// The lab, which starts the daemons as programs, and what is tested in it.
	{"e2e/lab/...", []string{"coordinator/api", "e2e/lab/...", "migrate", "trust"}},
	{"e2e/...", []string{"coordinator/api", "e2e/...", "migrate", "trust"}},
}

var engine = []string{
	"migrate", "migrate/dirty", "migrate/freezer", "migrate/image", "migrate/procfs", "migrate/resource",
	"migrate/wire", "pageserver", "parasite", "tcprepair", "tcprepair/acceptqueue", "tcprepair/forward", "tcprepair/hold", "tcprepair/timewait",
}

// reserved are packages from elsewhere that only some layers know.
var reserved = []layer{
	{"google.golang.org/grpc/...", []string{"agent/...", "cmd/...", "coordinator/...", "proto/..."}},
	{"google.golang.org/protobuf/...", []string{"agent/...", "cmd/...", "coordinator/...", "proto/..."}},
	{"github.com/hashicorp/raft/...", []string{"coordinator/..."}},
	{"github.com/hashicorp/raft-boltdb/...", []string{"coordinator/..."}},
	{"github.com/hashicorp/memberlist/...", []string{"coordinator/member"}},
	// Commands read flags; what the lab runs in its hosts are commands too.
	{"github.com/spf13/cobra/...", []string{"cmd/..."}},
	{"flag", []string{"cmd/...", "e2e/bench", "e2e/workload/..."}},
	// Libraries return, daemons log.
	{"log/...", []string{"agent/...", "cmd/...", "coordinator/...", "e2e/..."}},
	// The rest needs no system calls of its own.
	{"golang.org/x/sys/unix", []string{
		"agent/...", "cmd/...", "e2e/...", "migrate/dirty", "migrate/freezer", "migrate/procfs",
		"migrate/resource", "migrate/source", "migrate/target", "migrate/unixsock", "parasite/...", "tcprepair/...",
	}},
}

// fits reports whether the pattern is of this package.
func fits(pattern, path string) bool {
	if parent, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == parent || strings.HasPrefix(path, parent+"/")
	}
	return path == pattern
}

func anyFits(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return fits(p, path) })
}

// A pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
	CgoFiles   []string
	GoFiles    []string
}

// list runs go list with these arguments, the environment changed by env.
// Whether the packages build is not asked.
func list(t *testing.T, env []string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Doc,Imports,CgoFiles,GoFiles"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, problem.String())
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestLayers(t *testing.T) {
	for _, p := range list(t, nil, "./...") {
		path := strings.TrimPrefix(p.ImportPath, module)
		if len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue // only tests
		}
		i := slices.IndexFunc(layers, func(l layer) bool { return fits(l.pattern, path) })
		if i < 0 {
			t.Errorf("%s has no place in the layers: give it one in this test and in ARCHITECTURE.md", path)
			continue
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok {
				if !anyFits(layers[i].may, own) {
					t.Errorf("%s imports %s; as %q it may import %q", path, own, layers[i].pattern, layers[i].may)
				}
				continue
			}
			for _, r := range reserved {
				if fits(r.pattern, imported) && !anyFits(r.may, path) {
					t.Errorf("%s imports %s, which is for %q", path, imported, r.may)
				}
			}
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s needs cgo in %q", path, p.CgoFiles)
		}
		if p.Doc == "" && !fits("proto/...", path) {
			t.Errorf("%s has no documentation: its doc.go says what it owns and who may call it", path)
		}
	}
}

// A layer that no package is in, or that names one which is gone, is a rule
// about nothing.
func TestLayersAreOfThisTree(t *testing.T) {
	var paths []string
	for _, p := range list(t, nil, "./...") {
		paths = append(paths, strings.TrimPrefix(p.ImportPath, module))
	}
	for _, l := range slices.Concat(layers, reserved) {
		patterns := l.may
		if slices.ContainsFunc(layers, func(o layer) bool { return o.pattern == l.pattern }) {
			patterns = append([]string{l.pattern}, l.may...)
		}
		for _, pattern := range patterns {
			if fits("tcprepair/...", strings.TrimSuffix(pattern, "/...")) {
				continue // comes with the migration of connections
			}
			if !slices.ContainsFunc(paths, func(path string) bool { return fits(pattern, path) }) {
				t.Errorf("the layers name %s, which is not there", pattern)
			}
		}
	}
}

// The coordinator, its clients and the libraries that it stands on build where
// there is no Linux.
func TestCoordinatorNeedsNoLinux(t *testing.T) {
	for _, system := range []string{"darwin", "windows"} {
		for _, p := range list(t, []string{"GOOS=" + system, "CGO_ENABLED=0"}, "-deps", "./coordinator", "./coordinator/api", "./cmd/migrate-coordinator") {
			if own, ok := strings.CutPrefix(p.ImportPath, module); ok && len(p.GoFiles) == 0 {
				t.Errorf("%s has nothing to build on %s", own, system)
			}
		}
	}
}

// sources calls f with each Go file of the tree that people write.
func sources(t *testing.T, f func(name string, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (d.Name() == "testdata" || d.Name() == "bin" || d.Name()[0] == '.'):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".pb.go"):
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		f(name, fset, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// uses lists what a file uses of the package imported from a path, with the
// places.
func uses(fset *token.FileSet, file *ast.File, path string) map[string]token.Position {
	local := ""
	for _, imported := range file.Imports {
		if p, err := strconv.Unquote(imported.Path.Value); err == nil && p == path {
			local = path[strings.LastIndexByte(path, '/')+1:]
			if imported.Name != nil {
				local = imported.Name.Name
			}
		}
	}
	found := make(map[string]token.Position)
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && local != "" {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				found[s.Sel.Name] = fset.Position(s.Pos())
			}
		}
		return true
	})
	return found
}

// unsafeToo are files with a single such pointer, each where a system call takes
// the address of what stands beside it.
var unsafeToo = []string{
	"parasite/batch_linux.go",
	"parasite/parasitetest/confined.go",
	"parasite/thread_linux.go",
}

// Pointers that the compiler does not check stand in files that say so by their
// name; sizes and offsets are only numbers.
func TestUnsafeStandsInItsFiles(t *testing.T) {
	checked := 0
	sources(t, func(name string, fset *token.FileSet, file *ast.File) {
		for what, where := range uses(fset, file, "unsafe") {
			base := filepath.Base(name)
			switch {
			case what == "Sizeof" || what == "Offsetof" || what == "Alignof":
			case strings.HasSuffix(base, "_test.go"):
			case strings.Contains(base, "unsafe") || slices.Contains(unsafeToo, filepath.ToSlash(name)):
				checked++
			default:
				t.Errorf("%s: unsafe.%s outside of a file *_unsafe*.go", where, what)
			}
		}
	})
	if checked == 0 {
		t.Error("no file was found that uses unsafe at all")
	}
}

// Only commands end the program.
func TestOnlyCommandsExit(t *testing.T) {
	checked := 0
	sources(t, func(name string, fset *token.FileSet, file *ast.File) {
		if strings.HasSuffix(name, "_test.go") {
			return
		}
		if where, ok := uses(fset, file, "os")["Exit"]; ok {
			checked++
			if dir := filepath.ToSlash(filepath.Dir(name)); file.Name.Name != "main" && !anyFits(exits, dir) {
				t.Errorf("%s: os.Exit outside of a command", where)
			}
		}
	})
	if checked == 0 {
		t.Error("no file was found that exits")
	}
}

// exits are packages that are the body of a program of their own: the init of a
// lab's host, and the victims of tests.
var exits = []string{"e2e/lab/pid1", "parasite/parasitetest"}
