package sql

import (
	"context"
	"fmt"
	"strings"

	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// riverSchema is where River's tables are.
const riverSchema = "river"

// createRiverSchema runs as the login, which owns the database.
const createRiverSchema = `do $$
begin
  if not exists (select from pg_catalog.pg_namespace n where n.nspname = 'river') then
    create schema river authorization custody_owner;
  end if;
end
$$`

// riverMigrations are those of the River that this binary is built with, by
// version, from 1 without gaps.
func riverMigrations() []rivermigrate.Migration {
	m, err := rivermigrate.New(riverpgxv5.New(nil), nil)
	if err != nil {
		panic(err) // only an unknown line of migrations is refused, and we name none
	}
	return m.AllVersions()
}

// riverSQL is what River makes of a migration's text.
func riverSQL(text string) string {
	return strings.ReplaceAll(text, "/* TEMPLATE: schema */", `"`+riverSchema+`".`)
}

// riverVersion is the newest version of River that the database has, 0 for none.
func riverVersion(ctx context.Context, q Querier) (version int, err error) {
	var exists, hasLine bool
	err = q.QueryRow(ctx, `
select pg_catalog.count(*) > 0, coalesce(pg_catalog.bool_or(a.attname = 'line'), false)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = 'river' and c.relname = 'river_migration'`).Scan(&exists, &hasLine)
	if err != nil || !exists {
		return 0, err
	}
	where := ""
	if hasLine {
		where = " where line = 'main'"
	}
	err = q.QueryRow(ctx, `select coalesce(pg_catalog.max(version), 0) from river.river_migration`+where).Scan(&version)
	return version, err
}

// river brings the job queue's tables to the River that this binary is built
// with, by River's own migrator, and grants the runner what it needs.
func (m *migrator) river(ctx context.Context) (Outcome, string, error) {
	migrator, err := rivermigrate.New(riverpgxv5.New(m.pool), &rivermigrate.Config{Schema: riverSchema, Logger: m.cfg.Logger})
	if err != nil {
		return "", "", err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return "", "", fmt.Errorf("river: %w", err)
	}
	return Applied, "", m.execTx(ctx, []file{m.bundle.river}, m.record("river", m.bundle.riverDigest()))
}
