package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// A program is one workload. It works in threads of its own from start on and
// tells its journal what it finds wrong; verify checks all there is to check.
type program interface {
	start() error
	verify() findings
}

// programs are made by their names, with flags of their own.
var programs = map[string]func(*flag.FlagSet, *journal) program{
	"memory":  newMemory,
	"float":   newFloat,
	"epoll":   newEpoll,
	"gosched": newGosched,
	"listen":  newListen,
	"web":     newWeb,
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

// run works until SIGTERM or SIGINT, and ends with an error if anything was wrong.
func run(args []string, out io.Writer) error {
	if len(args) == 0 || programs[args[0]] == nil {
		return fmt.Errorf("usage: workload %s [flags]", strings.Join(names(), "|"))
	}
	name := args[0]
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	ask := flags.String("ask", "", "path of the file by which it is asked; the verdict is in PATH.answer")
	j := &journal{}
	at := flags.String("echo", "", "ADDRESS:PORT, or several with commas, where it answers each line with it, and how many have come over that connection")
	unixAt := flags.String("unix", "", "PATH of a unix socket where it does so, too")
	datagramsAt := flags.String("datagrams", "", "ADDRESS:PORT where it answers each datagram with it, and how many have come from there")
	p := programs[name](flags, j)
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	// Before the ready line: whoever reads that may send signals at once.
	asked, ended := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
	if err := p.start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	for network, addresses := range map[string]string{"tcp": *at, "unix": *unixAt} {
		for _, address := range strings.FieldsFunc(addresses, func(r rune) bool { return r == ',' }) {
			if err := echo(network, address, j); err != nil {
				return err
			}
		}
	}
	if *datagramsAt != "" {
		if err := echoDatagrams(*datagramsAt, j); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "ready %s %d\n", name, os.Getpid())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	questions := verdict.Questions(ctx, *ask)
	for {
		select {
		case token := <-questions:
			v := j.verdict(name, p.verify())
			v.Token = token
			if err := verdict.Answer(*ask, v); err != nil {
				return err
			}
		case <-asked:
			if err := json.NewEncoder(out).Encode(j.verdict(name, p.verify())); err != nil {
				return err
			}
		case <-ended:
			v := j.verdict(name, p.verify())
			if err := json.NewEncoder(out).Encode(v); err != nil {
				return err
			}
			if !v.OK {
				return fmt.Errorf("%d problems, the first: %s", len(v.Problems)+v.Unlisted, v.Problems[0])
			}
			return nil
		}
	}
}

func names() []string {
	var all []string
	for name := range programs {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// byteSize is a flag such as 256MiB.
type byteSize int64

func (b *byteSize) String() string { return fmt.Sprintf("%dMiB", *b>>20) }

func (b *byteSize) Set(s string) error {
	for suffix, unit := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			n, err := strconv.ParseInt(number, 10, 32)
			*b = byteSize(n * unit)
			return err
		}
	}
	return fmt.Errorf("%q has none of the units KiB, MiB, GiB", s)
}
