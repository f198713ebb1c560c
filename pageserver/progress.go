package pageserver

// Counters are what a round, or a whole stream, has carried.
type Counters struct {
	Pages        uint64 // whose content was carried, zero pages included
	ZeroPages    uint64 // of these, all zero: they cost a few bytes
	DroppedPages uint64
	MissingPages uint64 // not there any more when they were read; known to the sender only
	Bytes        uint64 // content of Pages, uncompressed
	WireBytes    uint64 // what crossed the network for it
}

func (c *Counters) add(d Counters) {
	c.Pages += d.Pages
	c.ZeroPages += d.ZeroPages
	c.DroppedPages += d.DroppedPages
	c.MissingPages += d.MissingPages
	c.Bytes += d.Bytes
	c.WireBytes += d.WireBytes
}

// Progress is what a stream has carried so far.
type Progress struct {
	N     uint32 // the round that Round counts: the present or the last one
	Round Counters
	Total Counters // all rounds; messages count in WireBytes only
}
