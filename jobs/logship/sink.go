package logship

// Sink takes lines.
type Sink interface{ Name() string }
