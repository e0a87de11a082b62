package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Querier is a pgx connection, pool or transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Relation says how a database and a binary stand to each other.
type Relation string

const (
	NotMigrated Relation = "not migrated" // no version at all
	Behind      Relation = "behind"       // the binary has files that the database lacks
	Current     Relation = "current"
	Ahead       Relation = "ahead"   // the database has more, and nothing of it breaks this binary
	TooNew      Relation = "too new" // the database has a breaking version that the binary does not know
	Changed     Relation = "changed" // a versioned file is not the one that was applied
	Locked      Relation = "locked"  // another migration is running
)

// StateError says that a database is not in the state that an operation needs.
type StateError struct {
	Relation Relation
	Problem  string
}

func (e *StateError) Error() string {
	remedy := map[Relation]string{
		NotMigrated: ": run `pgcustody migrate up`",
		Behind:      ": run `pgcustody migrate up`",
		TooNew:      ": use a newer pgcustody",
		Locked:      ": try again later",
	}[e.Relation]
	return "database " + string(e.Relation) + ": " + e.Problem + remedy
}

// Is makes errors.Is(err, &StateError{Relation: TooNew}) ask for the relation.
func (e *StateError) Is(target error) bool {
	other, ok := target.(*StateError)
	return ok && other.Relation == e.Relation
}

// ExitCode is what the command line exits with.
func (e *StateError) ExitCode() int { return 6 }

// Check returns nil when this binary may work on the database: at its own
// version, or ahead of it by nothing that is marked as breaking. Otherwise the
// error is a *StateError, or what the database said.
func Check(ctx context.Context, q Querier) error { return checkFiles(ctx, q, embedded) }

func checkFiles(ctx context.Context, q Querier, fsys fs.FS) error {
	report, err := inspectFiles(ctx, q, fsys)
	if err != nil {
		return fmt.Errorf("check the database's version: %w", err)
	}
	switch report.Relation {
	case Current, Ahead, Changed:
		// A changed file is a matter for migrations; nobody stops working for it.
		return nil
	}
	return &StateError{report.Relation, report.Problem}
}

// Report is what Status tells about a database.
type Report struct {
	Relation Relation  `json:"relation"`
	Problem  string    `json:"problem,omitempty"`
	Known    int64     `json:"known"`   // newest version of this binary
	Applied  int64     `json:"applied"` // newest version of the database, 0 for none
	Versions []Version `json:"versions"`
	Parts    []Part    `json:"parts"`
}

// Version is one versioned file, known to the binary, the database, or both.
type Version struct {
	Version   int64      `json:"version"`
	Name      string     `json:"name"`
	State     string     `json:"state"` // applied, pending, changed or unknown
	Breaking  bool       `json:"breaking,omitempty"`
	AppliedAt *time.Time `json:"applied_at,omitempty"`
	AppliedBy string     `json:"applied_by,omitempty"`
}

// Part is what is applied again whenever it changes.
type Part struct {
	Part      string     `json:"part"`  // routines, river or pgaudit
	State     string     `json:"state"` // applied, by hand, pending, or ahead: another binary's, and this one's before it
	AppliedAt *time.Time `json:"applied_at,omitempty"`
	AppliedBy string     `json:"applied_by,omitempty"`
}

func (r *Report) part(name string) Part {
	for _, p := range r.Parts {
		if p.Part == name {
			return p
		}
	}
	return Part{}
}

func (r *Report) pending() (versions []Version) {
	for _, v := range r.Versions {
		if v.State == "pending" {
			versions = append(versions, v)
		}
	}
	return versions
}

// Inspect compares a database with this binary. It only reads, as any role that
// may connect.
func Inspect(ctx context.Context, q Querier) (*Report, error) { return inspectFiles(ctx, q, embedded) }

func inspectFiles(ctx context.Context, q Querier, fsys fs.FS) (*Report, error) {
	b, err := load(fsys)
	if err != nil {
		return nil, err
	}
	return inspect(ctx, q, b)
}

// inspect compares the database with the files. It only reads.
func inspect(ctx context.Context, q Querier, b *bundle) (*Report, error) {
	applied, digests, err := readVersions(ctx, q)
	if err != nil {
		return nil, err
	}
	r := &Report{Known: b.latest()}
	var changed, breaking, missing, ahead *Version
	for _, m := range b.migrations {
		v := Version{Version: m.version, Name: m.name, State: "pending", Breaking: m.breaking}
		if a, ok := applied[m.version]; ok {
			v.AppliedAt, v.AppliedBy, v.State = a.AppliedAt, a.AppliedBy, "applied"
			if digests[m.version] != m.sha256 {
				v.State = "changed"
			}
			r.Applied = m.version
		}
		r.Versions = append(r.Versions, v)
		switch {
		case v.State == "pending" && missing == nil:
			missing = &v
		case v.State == "changed" && changed == nil:
			changed = &v
		}
	}
	for _, version := range slices.Sorted(maps.Keys(applied)) {
		if version <= b.latest() {
			continue
		}
		v := applied[version]
		v.State = "unknown"
		r.Versions = append(r.Versions, v)
		r.Applied, ahead = version, &v
		if v.Breaking && breaking == nil {
			breaking = &v
		}
	}

	if len(applied) > 0 {
		if r.Parts, err = readParts(ctx, q, map[string]string{
			"routines": b.routinesDigest(), "river": b.riverDigest(), "pgaudit": digest(b.pgaudit.text),
		}); err != nil {
			return nil, err
		}
	} else {
		for _, part := range parts {
			r.Parts = append(r.Parts, Part{Part: part, State: "pending"})
		}
	}

	if pgaudit := &r.Parts[len(r.Parts)-1]; pgaudit.AppliedAt == nil {
		var inEffect bool
		if err := q.QueryRow(ctx, pgauditInEffect).Scan(&inEffect); err != nil {
			return nil, err
		}
		if inEffect {
			pgaudit.State = "by hand"
		}
	}

	routines, river := r.part("routines").State, r.part("river").State
	switch {
	case len(applied) == 0:
		r.Relation, r.Problem = NotMigrated, "no version of pgcustody's schema is there"
	case breaking != nil:
		r.Relation = TooNew
		r.Problem = fmt.Sprintf("it has version %d (%s), which breaks binaries that know only %d", breaking.Version, breaking.Name, r.Known)
	case missing != nil:
		r.Relation = Behind
		r.Problem = fmt.Sprintf("it has version %d of %d", r.Applied, r.Known)
	case ahead != nil:
		r.Relation = Ahead
		r.Problem = fmt.Sprintf("it has version %d, this binary knows %d", r.Applied, r.Known)
	case changed != nil:
		r.Relation = Changed
		r.Problem = fmt.Sprintf("version %d (%s) is not the file that was applied", changed.Version, changed.Name)
	case routines == "pending":
		r.Relation, r.Problem = Behind, "its functions and views are older than this binary's"
	case river == "pending":
		r.Relation, r.Problem = Behind, "its job queue is older than this binary's"
	case routines == "ahead" || river == "ahead":
		r.Relation, r.Problem = Ahead, "its functions, views or job queue are another binary's"
	default:
		r.Relation = Current
	}
	return r, nil
}

// pgauditInEffect tells whether a DBA ran pgaudit.sql: reads of every personal
// column and of keys are marked for the log, and the database says by which role.
const pgauditInEffect = `
select exists (select from pg_catalog.pg_extension where extname = 'pgaudit')
and exists (
  select from pg_catalog.pg_db_role_setting s
  join pg_catalog.pg_database d on d.oid = s.setdatabase
  where d.datname = pg_catalog.current_database() and s.setrole = 0 and s.setconfig @> array['pgaudit.role=custody_pgaudit', 'pgaudit.log=read, write, ddl, role, misc_set'])
and not exists (
  select from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  where n.nspname in ('custody_data', 'custody_keys') and c.relkind in ('r', 'p') and not c.relispartition
    and (n.nspname = 'custody_keys' or pg_catalog.col_description(c.oid, a.attnum) like '%@custody{%')
    and not exists (
      select from pg_catalog.aclexplode(a.attacl) g join pg_catalog.pg_roles r on r.oid = g.grantee
      where r.rolname = 'custody_pgaudit' and g.privilege_type = 'SELECT'))`

// parts are what is applied again, in order.
var parts = []string{"routines", "river", "pgaudit"}

// readVersions reads what goose recorded. The catalog is asked first, because
// everybody may read it and a missing table is no error.
func readVersions(ctx context.Context, q Querier) (map[int64]Version, map[int64]string, error) {
	var exists bool
	if err := q.QueryRow(ctx, tableExists).Scan(&exists); err != nil || !exists {
		return nil, nil, err
	}
	rows, err := q.Query(ctx, `
select version, name, breaking, sha256, applied_at, applied_by
from custody_data.schema_migrations`)
	if err != nil {
		return nil, nil, err
	}
	applied, digests := map[int64]Version{}, map[int64]string{}
	var v Version
	var sha256 string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&v.Version, &v.Name, &v.Breaking, &sha256, &at, &v.AppliedBy}, func() error {
		v := v
		v.AppliedAt = &[]time.Time{at.UTC()}[0]
		applied[v.Version], digests[v.Version] = v, sha256
		return nil
	})
	return applied, digests, err
}

func readParts(ctx context.Context, q Querier, mine map[string]string) ([]Part, error) {
	list := make([]Part, 0, len(parts))
	for _, part := range parts {
		p := Part{Part: part, State: "pending"}
		var sha256 string
		var at time.Time
		var seen bool
		err := q.QueryRow(ctx, `
select s.sha256, s.applied_at, s.applied_by,
  exists (select from custody_data.schema_steps o where o.part = s.part and o.sha256 = $2)
from custody_data.schema_steps s
where s.part = $1
order by s.step_id desc
limit 1`, part, mine[part]).Scan(&sha256, &at, &p.AppliedBy, &seen)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, err
		}
		if err == nil {
			at = at.UTC()
			p.AppliedAt = &at
			switch {
			case sha256 == mine[part]:
				p.State = "applied"
			case seen:
				p.State = "ahead"
			}
		}
		list = append(list, p)
	}
	return list, nil
}
