package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

// Exit codes. Scripts rely on them.
const (
	exitDone      = 0
	exitUsage     = 1 // wrong usage, or no answer from the coordinator
	exitRefused   = 2 // by preflight, nothing was touched
	exitAborted   = 3 // the process runs at the source
	exitUndecided = 4 // ask "show ID"
)

// An exitError ends the program with a code of its own. With a nil err there
// is nothing more to say.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// refused gives the coordinator's word that a process or a host of a request
// cannot be one the exit code of a refusal: nothing was touched.
func refused(err error) error {
	if problem, ok := errors.AsType[*api.Error](err); ok && problem.Code == api.CodeInvalid {
		return &exitError{exitRefused, err}
	}
	return err
}

// A hintError is followed by what to do, also if it was an interruption.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// exitCode is the program's exit code for a verb's error, which it prints.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return exitDone
	}
	code := exitUsage
	if exit, ok := errors.AsType[*exitError](err); ok {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	if hint, ok := errors.AsType[*hintError](err); ok {
		text += "; " + hint.hint
	}
	fmt.Fprintln(stderr, "migratectl:", text)
	return code
}
