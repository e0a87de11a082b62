package sql

import "context"

// Inspect compares a database with this binary and only reads, as any role that
// may connect.
func Inspect(ctx context.Context, q Querier) (*Report, error) { return inspectFiles(ctx, q, embedded) }
