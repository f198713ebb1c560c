package source

const agentDir = "PAGURUS_SOURCE_AGENT"

func runAgent() {}
