package resource

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is on its way is found at the very byte with which it was sent, and stays there.
func TestQueueWithDescriptors(t *testing.T) {
	long := strings.Repeat("long", 50<<10)
	for name, tt := range map[string]struct {
		typ  int
		read int // bytes that the program has read already
		want []string
	}{
		"stream":              {unix.SOCK_STREAM, 0, []string{"plain" + long + " 0", "one 1", "x 1", "three 3", "tail 0"}},
		"stream that is read": {unix.SOCK_STREAM, 2, []string{"ain" + long + " 0", "one 1", "x 1", "three 3", "tail 0"}},
		"read to the piece":   {unix.SOCK_STREAM, 5 + len(long), []string{"one 1", "x 1", "three 3", "tail 0"}},
		// They were taken with the first byte.
		"read from the piece": {unix.SOCK_STREAM, 5 + len(long) + 1, []string{"ne 0", "x 1", "three 3", "tail 0"}},
		"packets":             {unix.SOCK_SEQPACKET, 0, []string{"plain 0", long + " 0", "one 1", "x 1", "three 3", "tail 0"}},
		"datagrams":           {unix.SOCK_DGRAM, 0, []string{"plain 0", long + " 0", "one 1", "x 1", "three 3", "tail 0"}},
	} {
		for _, credentials := range []int{0, 1} {
			t.Run(fmt.Sprint(name, credentials), func(t *testing.T) {
				ends, err := unix.Socketpair(unix.AF_UNIX, tt.typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(ends[0]); unix.Close(ends[1]) })
				passed, err := os.Open("/dev/null")
				if err != nil {
					t.Fatal(err)
				}
				defer passed.Close()
				fd := int(passed.Fd())
				for _, err := range []error{
					unix.SetsockoptInt(ends[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20),
					unix.SetsockoptInt(ends[1], unix.SOL_SOCKET, unix.SO_PASSCRED, credentials),
					unix.SetsockoptInt(ends[1], unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3),
					unix.Sendmsg(ends[0], []byte("plain"), nil, nil, 0),
					unix.Sendmsg(ends[0], []byte(long), nil, nil, 0),
					unix.Sendmsg(ends[0], []byte("one"), unix.UnixRights(fd), nil, 0),
					unix.Sendmsg(ends[0], []byte("x"), unix.UnixRights(fd), nil, 0),
					unix.Sendmsg(ends[0], []byte("three"), unix.UnixRights(fd, fd, fd), nil, 0),
					unix.Sendmsg(ends[0], []byte("tail"), nil, nil, 0),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
				if _, err := unix.Read(ends[1], make([]byte, tt.read)); err != nil {
					t.Fatal(err)
				}
				before, err := unix.GetsockoptInt(ends[1], unix.SOL_SOCKET, unix.SO_PEEK_OFF)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					queue, err := socketQueue(ends[1], tt.typ, false)
					if err != nil {
						t.Fatal(err)
					}
					var got []string
					plain := ""
					for _, a := range queue {
						if tt.typ == unix.SOCK_STREAM && len(a.passed) == 0 { // pieces that one cannot tell apart
							plain += string(a.Data)
							continue
						}
						if plain != "" {
							got, plain = append(got, plain+" 0"), ""
						}
						got = append(got, fmt.Sprintf("%s %d", a.Data, len(a.passed)))
						for _, duplicate := range a.passed {
							if order, err := kcmp(os.Getpid(), os.Getpid(), kcmpFile, duplicate, fd); err != nil || order != 0 {
								t.Errorf("another one is on its way: %d, %v", order, err)
							}
						}
						if a.Known != (credentials == 1) {
							t.Errorf("its sender is known: %v", a.Known)
						}
					}
					if plain != "" {
						got = append(got, plain+" 0")
					}
					closePassed(queue)
					if fmt.Sprint(got) != fmt.Sprint(tt.want) {
						t.Errorf("%.80q", got)
						for i := range got {
							t.Logf("%.20q... %d bytes", got[i], len(got[i]))
						}
					}
				}
				if after, err := unix.GetsockoptInt(ends[1], unix.SOL_SOCKET, unix.SO_PEEK_OFF); err != nil || after != before {
					t.Errorf("the program's looks begin at %d, %v", after, err)
				}
			})
		}
	}
}
