package vm

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// Each entry stands at a multiple of four bytes and is as long as it says.
func TestArchive(t *testing.T) {
	var buf bytes.Buffer
	a := newArchive(&buf)
	a.file("a/b/c", 0o600, "12345")
	a.file("a/b/dd", 0o755, "")
	a.link("a/e", "/b")
	a.device("dev/console", 5, 1)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for rest := buf.Bytes(); len(rest) > 0; {
		if !bytes.HasPrefix(rest, []byte("070701")) {
			t.Fatalf("no entry at %d: %q", buf.Len()-len(rest), rest[:min(len(rest), 20)])
		}
		field := func(i int) int {
			n := 0
			for _, digit := range rest[6+8*i : 14+8*i] {
				n = n<<4 | strings.IndexByte("0123456789abcdef", digit)
			}
			return n
		}
		name := string(rest[110 : 110+field(11)-1])
		start := (110 + field(11) + 3) &^ 3
		content := string(rest[start : start+field(6)])
		got = append(got, name+" "+content)
		rest = rest[(start+field(6)+3)&^3:]
	}
	want := []string{"a ", "a/b ", "a/b/c 12345", "a/b/dd ", "a/e /b", "dev ", "dev/console ", "TRAILER!!! "}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("entries %q, want %q", got, want)
	}

	cpio, err := exec.LookPath("cpio")
	if err != nil {
		return // what follows is only a second opinion
	}
	cmd := exec.Command(cpio, "-t", "--quiet")
	cmd.Stdin = &buf
	if out, err := cmd.Output(); err != nil || string(out) != "a\na/b\na/b/c\na/b/dd\na/e\ndev\ndev/console\n" {
		t.Errorf("cpio lists %q, %v", out, err)
	}
}
