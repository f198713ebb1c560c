package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

const (
	maxHosts = 26 // host-a to host-z

	clientName = "client"
	switchName = "switch"

	// The client's address ends in clientNumber, the hosts' in 1, 2, ...
	clientNumber = 250
)

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Options say what lab to make. The zero value is a lab of three hosts with
// their daemons, which ends when the program that made it ends.
type Options struct {
	Name         string        // "" for one made up
	Hosts        int           // 0 for 3
	Coordinators int           // 0 for the odd number up to 3 that fits the hosts
	Bin          string        // directory of the daemons and migratectl; "" for the running program's
	NoDaemons    bool          // hosts only, nothing started on them
	Outlive      bool          // the lab goes on when the program that made it ends
	Timeout      time.Duration // for the daemons to find each other; 0 for a minute

	// Progress is told what is being done; nil for nobody.
	Progress func(string)
}

// resolved fills in what was left open, except the name.
func (o Options) resolved() (Options, error) {
	o.Hosts = cmp.Or(o.Hosts, 3)
	o.Coordinators = cmp.Or(o.Coordinators, min(3, o.Hosts-(o.Hosts+1)%2))
	o.Timeout = cmp.Or(o.Timeout, time.Minute)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch {
	case o.Hosts < 1 || o.Hosts > maxHosts:
		return o, fmt.Errorf("%d hosts: a lab has 1 to %d", o.Hosts, maxHosts)
	case o.Coordinators < 1 || o.Coordinators > o.Hosts || o.Coordinators%2 == 0:
		return o, fmt.Errorf("%d coordinators on %d hosts: an odd number up to the number of hosts is needed, so that a majority can outvote the rest", o.Coordinators, o.Hosts)
	case o.Name != "" && !idPattern.MatchString(o.Name):
		return o, errors.New("a lab's name is 1 to 32 lower-case letters, digits and hyphens, and does not begin with a hyphen")
	}
	return o, nil
}

// A plan is what a lab consists of. It is decided before anything is made and
// written to the lab's directory, so that any program can find its way around.
type plan struct {
	ID    string     `json:"id"`
	Bin   string     `json:"bin"`
	Hosts []hostPlan `json:"hosts"` // host-a, host-b, ..., client, switch
}

// A hostPlan is one host of a plan. The switch, which holds the bridge, is
// made like a host without an address.
type hostPlan struct {
	Name        string       `json:"name"`
	Address     netip.Prefix `json:"address"`
	Address6    netip.Prefix `json:"address6"`
	Agent       bool         `json:"agent"`
	Coordinator bool         `json:"coordinator"`

	// What its clocks are ahead of the machine's (time_namespaces(7)).
	Monotonic time.Duration `json:"monotonic"`
	Boottime  time.Duration `json:"boottime"`
}

// newPlan lays out a lab.
func newPlan(id string, o Options) plan {
	p := plan{ID: id, Bin: o.Bin}
	for i := range o.Hosts {
		p.add("host-"+string(rune('a'+i)), i+1)
		p.Hosts[i].Agent = true
		p.Hosts[i].Coordinator = i < o.Coordinators
	}
	p.add(clientName, clientNumber)
	p.add(switchName, 0)
	return p
}

func (p *plan) add(name string, number int) {
	h := hostPlan{Name: name}
	if number != 0 {
		h.Address = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(number)}), 24)
		// The digits read the same: fd77::250 beside 10.77.0.250.
		h.Address6 = netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd77::%d", number)), 64)
	}
	// Far apart, in no order that a host could rely on, and with nanoseconds
	// that carry when a clock is added or subtracted.
	n := time.Duration(len(p.Hosts))
	h.Monotonic = (600+(n*1777)%5000)*time.Second + (n+1)*123456789
	h.Boottime = h.Monotonic + 300*time.Second + 77777777
	p.Hosts = append(p.Hosts, h)
}

func (p *plan) host(name string) (hostPlan, bool) {
	i := slices.IndexFunc(p.Hosts, func(h hostPlan) bool { return h.Name == name })
	if i < 0 {
		return hostPlan{}, false
	}
	return p.Hosts[i], true
}

// The directory of a lab, seen alike from the machine and from every host:
//
//	lab.json            the plan
//	ca.pem              authority of all certificates
//	operator.pem, .key  for clients
//	gossip.key
//	log/                what detached commands write
//	host-a.sock         coordinator's API, by way of host-a's agent
//	host-a/control.sock its PID 1
//	host-a/...          configuration, certificates, data and logs of its daemons
const directoryPrefix = "/tmp/pagurus-lab-"

func directory(id string) string { return directoryPrefix + id }

func (p *plan) dir() string                    { return directory(p.ID) }
func (p *plan) file(name string) string        { return filepath.Join(p.dir(), name) }
func (p *plan) logs() string                   { return p.file("log") }
func (p *plan) apiSocket(host string) string   { return p.file(host + ".sock") }
func (p *plan) hostDir(host string) string     { return p.file(host) }
func (p *plan) hostFile(host, f string) string { return filepath.Join(p.hostDir(host), f) }
func (p *plan) control(host string) string     { return p.hostFile(host, "control.sock") }
func (p *plan) coordinatorSocket(host string) string {
	return p.hostFile(host, "coordinator.sock")
}
func (p *plan) daemonLog(host, daemon string) string { return p.hostFile(host, daemon+".log") }
