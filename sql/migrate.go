package sql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// Config says what to migrate and how.
type Config struct {
	// URL is the migration login: it owns the database, may create roles, and
	// reaches the server directly, not through a transaction pooler.
	URL string
	// FS holds the SQL files; nil means those of this binary.
	FS fs.FS
	// Force applies the unversioned parts again although they are recorded as
	// applied, and goes on when a versioned file is not the one that was applied.
	Force bool
	// Development allows Down, which destroys data.
	Development bool
	// LockWait is how long to wait for another migration; 0 means five minutes.
	LockWait time.Duration
	// LockTimeout is how long a statement waits for a lock that the application
	// holds before the migration gives up; 0 means ten seconds.
	LockTimeout time.Duration
	// Logger takes the names of steps; nil discards them.
	Logger *slog.Logger

	tracer pgx.QueryTracer // what a test wants to see of the statements
}

// Outcome is what became of a step.
type Outcome string

const (
	Applied      Outcome = "applied"
	RolledBack   Outcome = "rolled back"
	Unchanged    Outcome = "unchanged"
	NotPermitted Outcome = "not permitted" // the login lacks the right; nothing changed
	Unavailable  Outcome = "unavailable"   // the server lacks what the step needs; nothing changed
)

// Step is one step of a migration.
type Step struct {
	Step     string        `json:"step"` // name of a versioned file, or routines, river, pgaudit
	Outcome  Outcome       `json:"outcome"`
	Problem  string        `json:"problem,omitempty"`
	Duration time.Duration `json:"duration_ns"`
}

// Result is what a migration did.
type Result struct {
	From  int64  `json:"from"` // newest version before, 0 for none
	To    int64  `json:"to"`
	Steps []Step `json:"steps"`
}

// Changed tells whether the database is another one than before.
func (r *Result) Changed() bool {
	for _, s := range r.Steps {
		if s.Outcome == Applied || s.Outcome == RolledBack {
			return true
		}
	}
	return false
}

// ErrDevelopmentOnly refuses what would destroy data.
var ErrDevelopmentOnly = errors.New("migrating down destroys data: it is for development only and has to be allowed explicitly")

// migrator is one migration in its session.
type migrator struct {
	*session
	cfg    Config
	bundle *bundle
	result *Result
}

func start(ctx context.Context, cfg Config, command string) (*migrator, error) {
	if cfg.FS == nil {
		cfg.FS = embedded
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	b, err := load(cfg.FS)
	if err != nil {
		return nil, err
	}
	s, err := connect(ctx, cfg, command)
	if err != nil {
		return nil, err
	}
	return &migrator{session: s, cfg: cfg, bundle: b, result: &Result{}}, nil
}

// Up brings the database to this binary. It may be run at any time, by many at
// once, and again after it was killed. The result is that of the steps done so
// far, also when there is an error.
func Up(ctx context.Context, cfg Config) (*Result, error) {
	m, err := start(ctx, cfg, "migrate up")
	if err != nil {
		return &Result{}, err
	}
	defer m.close()
	if err := m.up(ctx); err != nil {
		return m.result, fmt.Errorf("migrate up: %w", err)
	}
	return m.result, nil
}

func (m *migrator) up(ctx context.Context) error {
	if err := m.at(ctx, "lock"); err != nil {
		return err
	}
	if err := m.lock(ctx, m.cfg); err != nil {
		return err
	}
	// Before anything is touched. A login that may not look yet may do so after
	// bootstrap.sql, and what it then sees is looked at again.
	if _, err := m.mayMigrate(ctx); err != nil && !isCode(err, "42501") {
		return err
	}
	if err := m.bootstrap(ctx); err != nil {
		return err
	}
	if err := m.asOwner(ctx); err != nil {
		return err
	}
	report, err := m.mayMigrate(ctx)
	if err != nil {
		return err
	}
	m.result.From, m.result.To = report.Applied, report.Applied
	if err := m.versioned(ctx, report); err != nil {
		return err
	}
	for _, step := range []struct {
		part  string
		apply func(context.Context) (Outcome, string, error)
	}{
		{"routines", m.routines},
		{"river", m.river},
		{"pgaudit", m.pgaudit},
	} {
		if err := m.part(ctx, report, step.part, step.apply); err != nil {
			return err
		}
	}
	return nil
}

// mayMigrate refuses databases that are not this binary's to change.
func (m *migrator) mayMigrate(ctx context.Context) (*Report, error) {
	report, err := inspect(ctx, m.pool, m.bundle)
	if err != nil {
		return nil, err
	}
	if report.Applied > report.Known {
		return nil, &StateError{TooNew, fmt.Sprintf("it has version %d, this binary knows %d", report.Applied, report.Known)}
	}
	if river, err := riverVersion(ctx, m.pool); err != nil {
		return nil, err
	} else if known := len(riverMigrations()); river > known {
		return nil, &StateError{TooNew, fmt.Sprintf("its job queue has River's version %d, this binary knows %d", river, known)}
	}
	if report.Relation == Changed && !m.cfg.Force {
		return nil, &StateError{Changed, report.Problem + ": make a new database, or go on with --force"}
	}
	return report, nil
}

// bootstrap runs as the login. Roles belong to the cluster and the lock to the
// database, so a migration of another database may change the same rows at the
// same time; what then fails is tried again.
func (m *migrator) bootstrap(ctx context.Context) error {
	if err := m.at(ctx, "bootstrap"); err != nil {
		return err
	}
	files := []file{m.bundle.bootstrap, {"river", createRiverSchema}}
	for attempt := 1; ; attempt++ {
		err := m.execTx(ctx, files, nil)
		switch {
		case err == nil:
			return nil
		case isCode(err, "42501"):
			return fmt.Errorf("%w; the migration login must own the database and have CREATEROLE", err)
		case attempt < 10 && isCode(err, "23505", "42710", "XX000", "40P01"):
			// unique violation, duplicate object, tuple concurrently updated, deadlock
			time.Sleep(time.Duration(attempt) * 20 * time.Millisecond)
		default:
			return err
		}
	}
}

func (m *migrator) provider() (*goose.Provider, error) {
	return goose.NewProvider(goose.DialectCustom, m.db, m.bundle.fsys,
		goose.WithStore(store{m.bundle}), goose.WithDisableGlobalRegistry(true), goose.WithSlog(m.cfg.Logger))
}

func (m *migrator) versioned(ctx context.Context, report *Report) error {
	pending := report.pending()
	if len(pending) == 0 {
		return nil
	}
	provider, err := m.provider()
	if err != nil {
		return err
	}
	for _, v := range pending {
		if err := m.at(ctx, v.Name); err != nil {
			return err
		}
		done, err := provider.ApplyVersion(ctx, v.Version, true)
		if err != nil {
			return err
		}
		m.done(ctx, Step{Step: v.Name, Outcome: Applied, Duration: done.Duration})
		m.result.To = v.Version
	}
	return nil
}

// part applies one of the unversioned parts, if it is not what the database has.
func (m *migrator) part(ctx context.Context, report *Report, part string, apply func(context.Context) (Outcome, string, error)) error {
	if report.part(part).State == "applied" && m.result.From == m.result.To && !m.cfg.Force {
		m.done(ctx, Step{Step: part, Outcome: Unchanged})
		return nil
	}
	if err := m.at(ctx, part); err != nil {
		return err
	}
	began := time.Now()
	outcome, problem, err := apply(ctx)
	if err != nil {
		return err
	}
	m.done(ctx, Step{part, outcome, problem, time.Since(began)})
	return nil
}

func (m *migrator) routines(ctx context.Context) (Outcome, string, error) {
	return Applied, "", m.execTx(ctx, m.bundle.routines, m.record("routines", m.bundle.routinesDigest()))
}

// pgauditPath is for pgaudit.sql alone: the extension, which is none of ours, goes
// where psql would put it for a DBA. Names are still looked up in pg_catalog first.
const pgauditPath = "set local search_path = public, pg_temp"

// pgaudit's settings take rights that the login has on some hosts only, and an
// extension that not every host has. Neither is a failure of the migration.
func (m *migrator) pgaudit(ctx context.Context) (Outcome, string, error) {
	// Versions of this run may have added columns, so the report of its start is old.
	report, err := inspect(ctx, m.pool, m.bundle)
	if err != nil {
		return "", "", err
	}
	if m.bundle.pgaudit.text == "" || report.part("pgaudit").State == "by hand" && !m.cfg.Force {
		return Unchanged, "", nil
	}
	if err := m.asLogin(ctx); err != nil {
		return "", "", err
	}
	err = m.execTx(ctx, []file{{"search_path", pgauditPath}, m.bundle.pgaudit}, m.record("pgaudit", digest(m.bundle.pgaudit.text)))
	var pg *pgconn.PgError
	const byHand = ": a DBA has to run pgaudit.sql by hand"
	switch {
	case isCode(err, "42501"):
		errors.As(err, &pg)
		return NotPermitted, pg.Message + byHand, nil
	case isCode(err, "0A000", "58P01", "55000", "42704", "22023", "42602"):
		// not installed, not preloaded, or a setting that this version does not know
		errors.As(err, &pg)
		return Unavailable, pg.Message + byHand + " once the server has pgaudit", nil
	}
	return Applied, "", err
}

// record notes within the same transaction that a part is applied.
func (m *migrator) record(part, sha256 string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), insertStep, part, sha256, m.bundle.latest())
		return err
	}
}

func (m *migrator) done(ctx context.Context, s Step) {
	m.result.Steps = append(m.result.Steps, s)
	if s.Outcome != Unchanged {
		m.cfg.Logger.InfoContext(ctx, "migration step", "step", s.Step, "outcome", string(s.Outcome), "duration", s.Duration)
	}
}

// Down rolls versioned files back to version to, or by one file when to is
// negative. At 0 nothing but the roles and extensions is left. It is for
// development: data goes with its tables.
func Down(ctx context.Context, cfg Config, to int64) (*Result, error) {
	if !cfg.Development {
		return &Result{}, ErrDevelopmentOnly
	}
	m, err := start(ctx, cfg, "migrate down")
	if err != nil {
		return &Result{}, err
	}
	defer m.close()
	if err := m.down(ctx, to); err != nil {
		return m.result, fmt.Errorf("migrate down: %w", err)
	}
	return m.result, nil
}

func (m *migrator) down(ctx context.Context, to int64) error {
	if err := m.at(ctx, "lock"); err != nil {
		return err
	}
	if err := m.lock(ctx, m.cfg); err != nil {
		return err
	}
	report, err := m.mayMigrate(ctx)
	if err != nil {
		return err
	}
	m.result.From, m.result.To = report.Applied, report.Applied
	if to < 0 {
		to = max(report.Applied-1, 0)
	}
	if to > report.Applied {
		return fmt.Errorf("version %d is above the database's %d", to, report.Applied)
	}
	if report.Relation == NotMigrated {
		return nil
	}
	if err := m.asOwner(ctx); err != nil {
		return err
	}
	provider, err := m.provider()
	if err != nil {
		return err
	}
	// The routines go with the tables below them; the next Up brings them back.
	if err := m.exec(ctx, "delete from custody_data.schema_steps where part = 'routines'"); err != nil {
		return err
	}
	for version := report.Applied; version > to; version-- {
		name := m.bundle.find(version).name
		if err := m.at(ctx, name); err != nil {
			return err
		}
		done, err := provider.ApplyVersion(ctx, version, false)
		if err != nil {
			return err
		}
		m.done(ctx, Step{Step: name, Outcome: RolledBack, Duration: done.Duration})
		m.result.To = version - 1
	}
	if to > 0 {
		return nil
	}
	if err := m.at(ctx, "schemas"); err != nil {
		return err
	}
	return m.exec(ctx, "drop schema if exists river, custody_check, custody, custody_keys, custody_data cascade")
}

// Status compares the database with this binary. It takes no lock and changes
// nothing; any login that may read the version tables will do.
func Status(ctx context.Context, cfg Config) (*Report, error) {
	m, err := start(ctx, cfg, "migrate status")
	if err != nil {
		return nil, err
	}
	defer m.close()
	report, err := inspect(ctx, m.pool, m.bundle)
	if err != nil {
		return nil, fmt.Errorf("migrate status: %w", err)
	}
	return report, nil
}

// isCode tells whether the database refused with one of these SQLSTATEs.
func isCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.Contains(" "+strings.Join(codes, " ")+" ", " "+pg.Code+" ")
}
