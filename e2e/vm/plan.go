package vm

// A Plan is what the guest's init reads from PlanFile.
type Plan struct {
	Modules  []string  `json:"modules"` // to load, in this order
	Programs []Program `json:"programs"`
}

// PlanFile is where the guest finds its plan.
const PlanFile = "/plan.json"

// A Program is run to its end before the next one starts.
type Program struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Dir  string   `json:"dir"`
	Args []string `json:"args"`
}

// What the guest writes between the words of the programs, each at the start
// of a line.
const (
	MarkBegin = "\x01begin "  // and the name
	MarkEnd   = "\x01end "    // and how it ended: an exit status, or what went wrong
	MarkTrap  = "\x01failed " // and why the guest itself could not go on
)

// BuiltDir is where the guest has programs that were built outside, each by the
// path of its package. Its go command hands them out, since tests build what
// they need by "go build -o FILE PACKAGE".
const BuiltDir = "/built"
