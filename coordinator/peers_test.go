package coordinator_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
)

// TestComesBackKnowingHosts: the only coordinator is killed and started again,
// and knows the hosts by the time it leads, without waiting for gossip. A file
// that cannot be read costs only that.
func TestComesBackKnowingHosts(t *testing.T) {
	c := clustertest.Start(t, 1)
	peers := filepath.Join(c.Config("one").DataDir, "peers.json")
	c.Eventually("it has written down where members are", func() bool {
		info, err := os.Stat(peers)
		return err == nil && info.Size() > 0
	})
	c.Kill("one")
	c.Boot("one")
	c.AwaitStatus("one", func(s api.Status) bool { return s.Leads && len(s.Hosts) == 2 })

	c.Kill("one")
	if err := os.WriteFile(peers, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Boot("one")
	c.AwaitStatus("one", func(s api.Status) bool { return s.Leads })
}
