package parasitetest

func holdRegisters(rounds uint64) (wrong uint64)
