package verdict

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// pollInterval is how often each side looks for the other's file.
const pollInterval = 10 * time.Millisecond

func answerPath(path string) string { return path + ".answer" }

// Ask asks the workload that looks at path and waits for its verdict. An answer
// may be incomplete at first: not every language writes a file in one go.
func Ask(ctx context.Context, path string) (Verdict, error) {
	token := rand.Text()
	if err := writeFile(path, []byte(token)); err != nil {
		return Verdict{}, fmt.Errorf("asking a workload: %w", err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		v, err := readAnswer(path)
		if err == nil && v.Token == token {
			return v, os.Remove(answerPath(path))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !incomplete(err) {
			return Verdict{}, fmt.Errorf("reading a workload's verdict: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = os.Remove(path) // nobody took it, most likely
			return Verdict{}, fmt.Errorf("waiting for a workload's verdict in %s: %w", answerPath(path), errors.Join(ctx.Err(), err))
		}
	}
}

func incomplete(err error) bool {
	_, ok := errors.AsType[*json.SyntaxError](err)
	return ok
}

func readAnswer(path string) (Verdict, error) {
	content, err := os.ReadFile(answerPath(path))
	if err != nil {
		return Verdict{}, err
	}
	var v Verdict
	return v, json.Unmarshal(content, &v)
}

// Questions yields the token of each question that is put at path, until ctx
// ends. An empty path is never asked.
func Questions(ctx context.Context, path string) <-chan string {
	tokens := make(chan string)
	if path == "" {
		return tokens
	}
	go func() {
		tick := time.NewTicker(pollInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			token, err := os.ReadFile(path)
			if err != nil || os.Remove(path) != nil {
				continue // there is none, or the asker has given up
			}
			select {
			case tokens <- string(token):
			case <-ctx.Done():
				return
			}
		}
	}()
	return tokens
}

// Answer puts the verdict where who asked at path looks for it.
func Answer(path string, v Verdict) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := writeFile(answerPath(path), content); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

// writeFile makes a file appear with its whole content. Workloads may run as
// any user, and so may who asks them.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
