package lab

// SetLink plugs the host's cable to the switch in or out. Without it the host
// keeps its addresses and routes, and has no carrier.
func (h *Host) SetLink(up bool) error {
	pid, err := h.lab.initPID(switchName)
	if err != nil {
		return err
	}
	return inNetwork(pid, func() error { return setLink(h.Name(), up) })
}

// LimitLink makes the host's cable carry no more than that many bytes a
// second, each way; 0 takes the limit away.
func (h *Host) LimitLink(bytesPerSecond uint64) error {
	for at, card := range map[string]string{switchName: h.Name(), h.Name(): nicName} {
		pid, err := h.lab.initPID(at)
		if err != nil {
			return err
		}
		if err := inNetwork(pid, func() error { return limitLink(card, bytesPerSecond) }); err != nil {
			return err
		}
	}
	return nil
}
