package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pressly/goose/v3/database"
)

// store keeps goose's record in custody_data.schema_migrations, with the file's
// name, digest and mark beside the version.
type store struct{ bundle *bundle }

var _ database.StoreExtender = store{}

const (
	migrationsTable = "custody_data.schema_migrations"

	insertMigration = `insert into custody_data.schema_migrations (version, name, breaking, sha256) values ($1, $2, $3, $4)`
	insertStep      = `insert into custody_data.schema_steps (part, sha256, version) values ($1, $2, $3)`

	tableExists = `
select exists (
  select from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'custody_data' and c.relname = 'schema_migrations'
)`
)

func (store) Tablename() string { return migrationsTable }

func (store) TableExists(ctx context.Context, db database.DBTxConn) (exists bool, err error) {
	err = db.QueryRowContext(ctx, tableExists).Scan(&exists)
	return exists, err
}

func (s store) CreateVersionTable(ctx context.Context, db database.DBTxConn) error {
	_, err := db.ExecContext(ctx, s.bundle.versions.text)
	if err != nil {
		return atLine(s.bundle.versions, err)
	}
	return nil
}

func (s store) Insert(ctx context.Context, db database.DBTxConn, req database.InsertRequest) error {
	if req.Version == 0 {
		return nil // goose's "no version yet"; an empty table says the same
	}
	m := s.bundle.find(req.Version)
	_, err := db.ExecContext(ctx, insertMigration, m.version, m.name, m.breaking, m.sha256)
	return err
}

func (store) Delete(ctx context.Context, db database.DBTxConn, version int64) error {
	done, err := db.ExecContext(ctx, `delete from custody_data.schema_migrations where version = $1`, version)
	if err != nil {
		return err
	}
	if rows, err := done.RowsAffected(); err != nil || rows != 1 {
		return fmt.Errorf("version %d is not recorded, or hidden by row-level security", version)
	}
	return nil
}

func (store) GetMigration(ctx context.Context, db database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	var at time.Time
	err := db.QueryRowContext(ctx, `select applied_at from custody_data.schema_migrations where version = $1`, version).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, database.ErrVersionNotFound
	}
	if err != nil {
		return nil, err
	}
	return &database.GetMigrationResult{Timestamp: at, IsApplied: true}, nil
}

func (store) GetLatestVersion(ctx context.Context, db database.DBTxConn) (version int64, err error) {
	err = db.QueryRowContext(ctx, `select coalesce(pg_catalog.max(version), 0) from custody_data.schema_migrations`).Scan(&version)
	return version, err
}

func (store) ListMigrations(ctx context.Context, db database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	rows, err := db.QueryContext(ctx, `select version from custody_data.schema_migrations order by version desc`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []*database.ListMigrationsResult
	for rows.Next() {
		var version int64
		if err := rows.Scan(&version); err != nil {
			return nil, err
		}
		list = append(list, &database.ListMigrationsResult{Version: version, IsApplied: true})
	}
	return append(list, &database.ListMigrationsResult{Version: 0, IsApplied: true}), rows.Err()
}
