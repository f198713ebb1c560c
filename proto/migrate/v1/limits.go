package migratev1

// MaxMessageBytes bounds a message between daemons, in either direction; the
// inventory of a tree with a hundred thousand mappings is a few megabytes.
// What gRPC takes by default is less than that.
const MaxMessageBytes = 64 << 20
