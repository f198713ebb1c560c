package resource

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// timeWaits are the connections of an image that have ended, at addresses that go along.
func timeWaits(m *image.Image) image.TimeWaits {
	w := m.TimeWaits
	w.All = slices.DeleteFunc(slices.Clone(w.All), func(w tcprepair.TimeWait) bool { return !IsAmong(m.Addresses, w.Local.Addr()) })
	return w
}

// rememberFor bounds how long that may take: later what peers send again is answered, with a reset.
const rememberFor = 1500 * time.Millisecond

// Remember makes this host, which has their addresses, remember connections that have ended, so that it
// acknowledges what their peers send again. It is for when the processes run: nobody waits for
// it. It may be repeated. What is lost is returned.
func (a *Arrival) Remember() (lost []error) {
	w := a.TimeWaits
	a.TimeWaits = image.TimeWaits{}
	if w.Failed != "" {
		lost = append(lost, fmt.Errorf("connections that have ended are not remembered here: %s", w.Failed))
	}
	if w.Others > 0 {
		lost = append(lost, fmt.Errorf("%d connections that have ended are not remembered here: they are beyond the first %d, or bound to a device, or signed", w.Others, image.MaxTimeWaits))
	}
	if len(w.All) == 0 {
		return lost
	}
	if failed, err := remember(w.All, time.Now().Add(rememberFor)); failed > 0 {
		lost = append(lost, fmt.Errorf("%d connections that have ended are not remembered here: %w", failed, err))
	}
	return lost
}

// remember returns how many have failed until then, and one of the reasons.
func remember(all []tcprepair.TimeWait, until time.Time) (failed int, why error) {
	restorer, err := tcprepair.NewRestorer()
	if err != nil {
		return len(all), err
	}
	var mu sync.Mutex
	_ = inParallel(len(all), func(i int) error { // has nothing to tell
		err := errors.New("it takes too long")
		// The peer may say something in between.
		for try := 0; try < 2 && err != nil && !errors.Is(err, tcprepair.ErrConnected) && time.Now().Before(until); try++ {
			err = restorer.RestoreTimeWait(&all[i])
		}
		if err != nil && !errors.Is(err, tcprepair.ErrConnected) {
			mu.Lock()
			failed, why = failed+1, cmp.Or(why, err)
			mu.Unlock()
		}
		return nil
	})
	return failed, why
}
