package sql

import (
	"context"
	"io/fs"

	"github.com/jackc/pgx/v5"
)

// What the tests of this package need and nobody else.

const LockKey = lockKey

var ErrSessionLost = errSessionLost

func CheckFiles(ctx context.Context, q Querier, fsys fs.FS) error { return checkFiles(ctx, q, fsys) }

func Load(fsys fs.FS) error { _, err := load(fsys); return err }

// Latest is the newest version of the embedded files.
func Latest() int64 {
	b, err := load(embedded)
	if err != nil {
		panic(err)
	}
	return b.latest()
}

// Traced lets a test see each statement that a migration sends.
func (c Config) Traced(tracer pgx.QueryTracer) Config { c.tracer = tracer; return c }
