package pagurus_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryBlockerIsTested wants each code of a finding to be given somewhere
// and to be met in some test: one that nothing emits, or that nobody has seen,
// is a promise.
func TestEveryBlockerIsTested(t *testing.T) {
	const vocabulary = "migrate/finding.go"
	file, err := parser.ParseFile(token.NewFileSet(), vocabulary, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	given, met := make(map[string]bool), make(map[string]bool)
	word := regexp.MustCompile(`\bCode[A-Z]\w*`)
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || path == vocabulary {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, code := range word.FindAllString(string(text), -1) {
			if strings.HasSuffix(path, "_test.go") {
				met[code] = true
			} else {
				given[code] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		n++
		if code := spec.Names[0].Name; !given[code] || !met[code] {
			t.Errorf("migrate.%s: given by the code: %v, met in a test: %v", code, given[code], met[code])
		}
		return false
	})
	if n < 20 {
		t.Errorf("%s has %d codes", vocabulary, n)
	}
}
