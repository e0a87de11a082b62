package jobs

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/retrieve"
)

// ArchiveDatabase is the catalog and the tree of a database, for whoever reads the
// archive back; the scope's tenant is each transaction's own.
func ArchiveDatabase(pool Beginner, scope Scope) retrieve.Database {
	return retrieve.Database{In: func(ctx context.Context, tenant string, work func(pgx.Tx) error) error {
		scope := scope
		scope.Tenant = tenant
		return InContext(ctx, pool, scope, work)
	}}
}
