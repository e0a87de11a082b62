package sql_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/sql"
)

func TestUpOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	result := d.up(t)
	require.True(t, result.Changed())
	require.Zero(t, result.From)
	require.Equal(t, sql.Latest(), result.To)
	for _, name := range versionedFiles(t) {
		require.Equal(t, sql.Applied, outcomes(result)[strings.TrimSuffix(name, ".sql")])
	}

	admin := connectTo(t, d.super)
	require.False(t, value[bool](t, admin, `select rolsuper or rolbypassrls from pg_roles where rolname = 'custody_migrator'`),
		"the migration login needs no superuser")
	require.False(t, value[bool](t, admin, `select rolsuper or rolbypassrls or rolcanlogin from pg_roles where rolname = 'custody_owner'`))
	require.Empty(t, value[[]string](t, admin, `
select coalesce(array_agg(o.kind || ' ' || o.name order by 1), '{}') from (
  select 'relation', oid::regclass::text, relowner, relnamespace from pg_class
  union all select 'function', oid::regprocedure::text, proowner, pronamespace from pg_proc
  union all select 'type', oid::regtype::text, typowner, typnamespace from pg_type
  union all select 'schema', nspname, nspowner, oid from pg_namespace
) o (kind, name, owner, schema)
where o.schema in (select oid from pg_namespace where nspname ~ '^(custody|river)') and o.owner <> 'custody_owner'::regrole`),
		"everything belongs to custody_owner")
}

func TestUpASecondTimeChangesNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	before, steps := d.dump(t), d.steps(t)

	result := d.up(t)
	require.False(t, result.Changed(), "%+v", result.Steps)
	requireSameDump(t, before, d.dump(t))
	require.Equal(t, steps, d.steps(t))
	status, err := sql.Status(t.Context(), d.config())
	require.NoError(t, err)
	require.Equal(t, sql.Current, status.Relation)
}

// steps is what the migrator recorded, apart from when.
func (d *database) steps(t *testing.T) []string {
	t.Helper()
	return value[[]string](t, connectTo(t, d.super), `
select array_agg(row order by row) from (
  select concat_ws(' ', version, name, breaking, sha256) from custody_data.schema_migrations
  union all select concat_ws(' ', part, sha256, version) from custody_data.schema_steps
) r (row)`)
}

func TestTwentyAtOnce(t *testing.T) {
	t.Parallel()
	fresh := newDatabase(t)
	fresh.up(t)

	d := newDatabase(t)
	var wg sync.WaitGroup
	results, errs := make([]*sql.Result, 20), make([]error, 20)
	for i := range results {
		wg.Go(func() { results[i], errs[i] = sql.Up(t.Context(), d.config()) })
	}
	wg.Wait()
	changed := 0
	for i, result := range results {
		require.NoError(t, errs[i])
		if result.Changed() {
			changed++
		}
	}
	require.Equal(t, 1, changed, "one of them did the work")
	requireSameDump(t, fresh.dump(t), d.dump(t))
	require.Equal(t, fresh.steps(t), d.steps(t))
}

// Roles belong to the cluster: migrations of several databases meet there.
func TestDatabasesOfOneClusterAtOnce(t *testing.T) {
	t.Parallel()
	list := make([]*database, 6)
	for i := range list {
		list[i] = newDatabase(t)
	}
	// The roles are there already, so this has them changed by all.
	bootstrap, err := fs.ReadFile(sql.Files(), "bootstrap.sql")
	require.NoError(t, err)
	files := overlay(t, map[string]*string{
		"bootstrap.sql": text(string(bootstrap) + "\nalter role custody_readonly connection limit -1; select pg_catalog.pg_sleep(0.02);"),
	})
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, d := range list {
		wg.Go(func() {
			config := d.config()
			config.FS = files
			_, errs[i] = sql.Up(t.Context(), config)
		})
	}
	wg.Wait()
	for i, d := range list {
		require.NoError(t, errs[i])
		requireSameDump(t, list[0].dump(t), d.dump(t))
	}
}

func TestUpgradeEqualsFreshInstall(t *testing.T) {
	t.Parallel()
	fresh := newDatabase(t)
	fresh.up(t)
	want := fresh.dump(t)
	latest := int(sql.Latest())
	for _, version := range []int{1, latest / 2, latest - 1} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			require.EqualValues(t, version, d.up(t, versionsUpTo(t, version)).To)
			result := d.up(t)
			require.EqualValues(t, version, result.From)
			requireSameDump(t, want, d.dump(t))
		})
	}
	t.Run("with the routines applied again", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		d.up(t)
		config := d.config()
		config.Force = true
		result, err := sql.Up(t.Context(), config)
		require.NoError(t, err)
		require.Equal(t, sql.Applied, outcomes(result)["routines"])
		require.Equal(t, sql.Applied, outcomes(result)["river"])
		requireSameDump(t, want, d.dump(t))
	})
}

func TestDownAndUp(t *testing.T) {
	t.Parallel()
	fresh := newDatabase(t)
	fresh.up(t)
	want := fresh.dump(t)
	// One back; nothing left; all but the first, so that what a file leaves behind
	// is in the way of its return.
	for _, to := range []int64{-1, 0, 1} {
		t.Run(fmt.Sprint(to), func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			d.up(t)
			_, err := sql.Down(t.Context(), d.config(), to)
			require.ErrorIs(t, err, sql.ErrDevelopmentOnly)
			requireSameDump(t, want, d.dump(t))

			config := d.config()
			config.Development = true
			result, err := sql.Down(t.Context(), config, to)
			require.NoError(t, err)
			target := to
			if to < 0 {
				target = sql.Latest() - 1
			}
			require.Equal(t, target, result.To)
			if target == 0 {
				require.Zero(t, value[int](t, connectTo(t, d.super), `select count(*) from pg_namespace where nspname ~ '^(custody|river)'`))
			}
			err = sql.Check(t.Context(), connectTo(t, d.super))
			if target == 0 {
				requireState(t, err, sql.NotMigrated)
			} else {
				requireState(t, err, sql.Behind)
			}

			require.Equal(t, target, d.up(t).From)
			requireSameDump(t, want, d.dump(t))
			require.NoError(t, sql.Check(t.Context(), connectTo(t, d.super)))
		})
	}
}

// A process is killed at any moment; the next ones go on where it stopped.
func TestKilledAndRunAgain(t *testing.T) {
	t.Parallel()
	fresh := newDatabase(t)
	fresh.up(t)
	want, steps := fresh.dump(t), fresh.steps(t)
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			killed := 0
			for attempt := 0; ; attempt++ {
				// Half as long again each time, so that a slow machine too gets further and comes to an end.
				patience := 50 * time.Millisecond * time.Duration(math.Pow(1.5, float64(attempt)))
				require.Less(t, patience, 10*time.Minute)
				command := exec.Command(os.Args[0])
				command.Env = append(os.Environ(), upEnv+"="+d.url)
				var problem bytes.Buffer
				command.Stderr = &problem
				require.NoError(t, command.Start())
				timer := time.AfterFunc(patience+rand.N(patience), func() { command.Process.Kill() })
				err := command.Wait()
				timer.Stop()
				if err == nil {
					break
				}
				require.Equal(t, -1, command.ProcessState.ExitCode(), "it failed without being killed: %s", problem.String())
				killed++
			}
			require.NotZero(t, killed)
			requireSameDump(t, want, d.dump(t))
			require.Equal(t, steps, d.steps(t))
		})
	}
}

// A statement whose connection breaks fails, and leaves nothing behind.
func TestConnectionBreaksInAStatement(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	config := d.config()
	config.FS = overlay(t, map[string]*string{
		next(1, "slow"): text("-- +goose Up\ncreate table custody_data.slow (a int);\nselect pg_catalog.pg_sleep(60);\n"),
	})
	failed := make(chan error, 1)
	go func() {
		_, err := sql.Up(context.Background(), config)
		failed <- err
	}()
	admin := connectTo(t, d.super)
	name := "pgcustody migrate up/" + strings.TrimSuffix(next(1, "slow"), ".sql")
	require.Eventually(t, func() bool {
		return value[int](t, admin, `
select count(pg_terminate_backend(pid)) from pg_stat_activity
where datname = $1 and application_name = $2 and query ~ 'pg_sleep'`, d.name, name) == 1
	}, 10*time.Second, 20*time.Millisecond, "application_name names command and step")
	require.Error(t, <-failed)
	require.Zero(t, value[int](t, admin, `select count(*) from pg_class where relname = 'slow'`))
	require.False(t, d.up(t).Changed())
}

// onStep is a logger that does something after each step.
type onStep struct {
	slog.Handler
	do func(step string)
}

func (h onStep) Enabled(context.Context, slog.Level) bool { return true }

func (h onStep) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "step" {
			h.do(a.Value.String())
		}
		return true
	})
	return nil
}

// The lock and the work share one session: when it breaks between two steps, no
// second one goes on without the lock.
func TestConnectionBreaksBetweenSteps(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	admin := connectTo(t, d.super)
	first := strings.TrimSuffix(versionedFiles(t)[0], ".sql")
	config := d.config()
	config.Logger = slog.New(onStep{slog.DiscardHandler, func(step string) {
		if step != first {
			return
		}
		require.Equal(t, 1, value[int](t, admin, `select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1 and usename = 'custody_migrator'`, d.name))
		// The pool looks whether a connection that rested for a second still lives.
		time.Sleep(1100 * time.Millisecond)
	}})
	result, err := sql.Up(t.Context(), config)
	require.ErrorIs(t, err, sql.ErrSessionLost)
	require.EqualValues(t, 1, result.To)
	require.Equal(t, 1, value[int](t, admin, `select count(*) from custody_data.schema_migrations`))
	d.up(t)
}

func TestOneMigrationAtATime(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	holder := connectTo(t, d.super)
	_, err := holder.Exec(t.Context(), "select pg_advisory_lock($1)", sql.LockKey)
	require.NoError(t, err)
	config := d.config()
	config.LockWait = 200 * time.Millisecond
	_, err = sql.Up(t.Context(), config)
	requireState(t, err, sql.Locked)
	require.Zero(t, value[int](t, holder, `select count(*) from pg_namespace where nspname ~ '^custody'`), "nothing was touched")
}

func TestLockTimeout(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	tx, err := connectTo(t, d.super).Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	_, err = tx.Exec(t.Context(), "select from custody_data.tenants limit 0")
	require.NoError(t, err)

	config := d.config()
	config.LockTimeout = 50 * time.Millisecond
	config.FS = overlay(t, map[string]*string{
		next(1, "alter"): text("-- +goose Up\nalter table custody_data.tenants add column note text;\n"),
	})
	began := time.Now()
	_, err = sql.Up(t.Context(), config)
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "55P03", pg.Code)
	require.Less(t, time.Since(began), 8*time.Second)
	require.NoError(t, tx.Rollback(t.Context()))
	_, err = sql.Up(t.Context(), config)
	require.NoError(t, err)
}

func TestNewerDatabase(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		header string
		works  bool
	}{
		"compatible": {"", true},
		"said to be": {"-- breaking: no\n", true},
		"breaking":   {"-- What it does.\n-- breaking: yes\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			d.up(t, overlay(t, map[string]*string{
				next(1, "break"): text(test.header + "-- +goose Up\ncreate table custody_data.one (a int);\n"),
				next(2, "more"):  text("-- +goose Up\ncreate table custody_data.two (a int);\n"),
			}))
			before := d.dump(t)

			err := sql.Check(t.Context(), d.as(t, "custody_worker"))
			status, statusErr := sql.Status(t.Context(), d.config())
			require.NoError(t, statusErr)
			if test.works {
				require.NoError(t, err)
				require.Equal(t, sql.Ahead, status.Relation)
			} else {
				requireState(t, err, sql.TooNew)
				require.Equal(t, sql.TooNew, status.Relation)
			}

			config := d.config()
			config.Force, config.Development = true, true
			_, err = sql.Up(t.Context(), config)
			requireState(t, err, sql.TooNew)
			_, err = sql.Down(t.Context(), config, 0)
			requireState(t, err, sql.TooNew)
			requireState(t, sql.Plan(t.Context(), config, &bytes.Buffer{}), sql.TooNew)
			requireSameDump(t, before, d.dump(t))
		})
	}
	t.Run("job queue", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		d.up(t)
		_, err := connectTo(t, d.super).Exec(t.Context(), "insert into river.river_migration (line, version) values ('main', 1000)")
		require.NoError(t, err)
		_, err = sql.Up(t.Context(), d.config())
		requireState(t, err, sql.TooNew)
	})
}

func TestOlderDatabase(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	requireState(t, sql.Check(t.Context(), connectTo(t, d.url)), sql.NotMigrated)
	d.up(t)
	worker := d.as(t, "custody_worker")
	require.NoError(t, sql.Check(t.Context(), worker))

	newer := overlay(t, map[string]*string{
		next(1, "more"): text("-- +goose Up\ncreate table custody_data.one (a int);\n"),
	})
	err := sql.CheckFiles(t.Context(), worker, newer)
	requireState(t, err, sql.Behind)
	require.ErrorContains(t, err, fmt.Sprintf("version %d of %d", sql.Latest(), sql.Latest()+1))
	d.up(t, newer)
	require.NoError(t, sql.CheckFiles(t.Context(), worker, newer))
}

// Every login's role may ask whether it may work.
func TestCheckByEveryRole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	for _, role := range []string{"readonly", "readwrite", "admin", "worker", "privacy", "auditor", "backup"} {
		require.NoError(t, sql.Check(t.Context(), d.as(t, "custody_"+role)), role)
	}
}

func TestRoutinesAreAppliedWhenTheyChange(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	newer := overlay(t, map[string]*string{
		"routines/99_probe.sql": text("create or replace function custody.probe() returns int language sql return 1;"),
	})
	worker := d.as(t, "custody_worker")
	requireState(t, sql.CheckFiles(t.Context(), worker, newer), sql.Behind)
	result := d.up(t, newer)
	require.Equal(t, sql.Applied, outcomes(result)["routines"])
	require.Equal(t, sql.Unchanged, outcomes(result)["river"])
	require.NoError(t, sql.CheckFiles(t.Context(), worker, newer))
	require.NoError(t, sql.Check(t.Context(), worker), "the older binary goes on")

	admin := connectTo(t, d.super)
	_, err := admin.Exec(t.Context(), "create or replace function custody.probe() returns int language sql return 2")
	require.NoError(t, err)
	require.False(t, d.up(t, newer).Changed(), "nothing is recorded as changed")
	config := d.config()
	config.FS, config.Force = newer, true
	_, err = sql.Up(t.Context(), config)
	require.NoError(t, err)
	require.Equal(t, 1, value[int](t, admin, "select custody.probe()"), "--force brings back what was tampered with")

	result = d.up(t, overlay(t, map[string]*string{
		"routines/99_probe.sql": text("create or replace function custody.probe() returns int language sql return 5;"),
	}))
	require.Equal(t, sql.Applied, outcomes(result)["routines"], "another text under the same name")
	require.Equal(t, 5, value[int](t, admin, "select custody.probe()"))

	// One routine that fails takes all of them back.
	before := d.dump(t)
	config.FS = overlay(t, map[string]*string{
		"routines/98_probe.sql":  text("create or replace function custody.probe() returns int language sql return 3;"),
		"routines/99_broken.sql": text("select 1;\n\nselect 1 from nowhere;\n"),
	})
	_, err = sql.Up(t.Context(), config)
	require.ErrorContains(t, err, "routines/99_broken.sql:3:")
	requireSameDump(t, before, d.dump(t))
}

// What has no schema in its name must fail, not land somewhere.
func TestNamesNeedTheirSchema(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	_, err := connectTo(t, d.super).Exec(t.Context(), "grant all on schema public to public")
	require.NoError(t, err)
	config := d.config()
	config.FS = overlay(t, map[string]*string{next(1, "probe"): text("-- +goose Up\ncreate table probe (a int);\n")})
	_, err = sql.Up(t.Context(), config)
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "3F000", pg.Code)
}

// A migration that ends between the versions and the routines is not complete.
func TestInterruptedBeforeTheRoutines(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	last := next(1, "more")
	config := d.config()
	config.Development = true
	config.FS = overlay(t, map[string]*string{
		last: text("-- +goose Up\ncreate table custody_data.one (a int);\n-- +goose Down\ndrop table custody_data.one;\n"),
	})
	d.up(t, config.FS)
	_, err := sql.Down(t.Context(), config, -1)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	config.Logger = slog.New(onStep{slog.DiscardHandler, func(step string) {
		if step+".sql" == last {
			cancel()
		}
	}})
	result, err := sql.Up(ctx, config)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, sql.Latest()+1, result.To)
	requireState(t, sql.CheckFiles(t.Context(), connectTo(t, d.super), config.FS), sql.Behind)
	require.Equal(t, sql.Applied, outcomes(d.up(t, config.FS))["routines"])
}

// Behind a transaction pooler the session's lock would be another session's.
func TestPoolerIsRefused(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	pooler, err := d.stack.StartPooler(t.Context(), d.name)
	require.NoError(t, err)
	defer func() { require.NoError(t, pooler.Stop()) }()
	_, err = sql.Up(t.Context(), sql.Config{URL: pooler.URL(stack.MigratorLogin)})
	require.ErrorContains(t, err, "pooler")
	require.Zero(t, value[int](t, connectTo(t, d.super), `select count(*) from pg_namespace where nspname ~ '^custody'`))
}

func TestChangedFileIsRefused(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	name := next(1, "more")
	d.up(t, overlay(t, map[string]*string{name: text("-- +goose Up\ncreate table custody_data.one (a int);\n")}))
	changed := overlay(t, map[string]*string{name: text("-- +goose Up\ncreate table custody_data.one (a bigint);\n")})
	config := d.config()
	config.FS = changed
	_, err := sql.Up(t.Context(), config)
	requireState(t, err, sql.Changed)
	require.NoError(t, sql.CheckFiles(t.Context(), d.as(t, "custody_worker"), changed), "nobody stops working for it")
	config.Force = true
	_, err = sql.Up(t.Context(), config)
	require.NoError(t, err)
}

func TestFilesThatAreRefused(t *testing.T) {
	const good = "-- +goose Up\nselect 1;\n"
	for name, test := range map[string]struct {
		changes map[string]*string
		want    string
	}{
		"good":                   {map[string]*string{next(1, "x"): text(good)}, ""},
		"outside a transaction":  {map[string]*string{next(1, "x"): text("-- +goose NO TRANSACTION\n" + good)}, `"NO TRANSACTION" is not supported`},
		"reads the environment":  {map[string]*string{next(1, "x"): text("-- +goose Up\n-- +goose ENVSUB ON\nselect 1;\n")}, "not supported"},
		"no section":             {map[string]*string{next(1, "x"): text("select 1;\n")}, "no section"},
		"a gap":                  {map[string]*string{next(2, "x"): text(good)}, "expected"},
		"a version twice":        {map[string]*string{next(0, "x"): text(good)}, "expected"},
		"no title":               {map[string]*string{"00099.sql": text(good)}, "underscore"},
		"half-marked":            {map[string]*string{next(1, "x"): text("-- breaking: maybe\n" + good)}, "neither yes nor no"},
		"without the bootstrap":  {map[string]*string{"bootstrap.sql": nil}, "bootstrap.sql"},
		"without what is put on": {map[string]*string{"pgaudit.sql": nil}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := sql.Load(overlay(t, test.changes))
			if test.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.want)
			}
		})
	}
	require.Error(t, sql.Load(fstest.MapFS{}))
}

// pgaudit's settings need rights that the login has on some hosts only.
func TestPgauditIsReported(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text string
		want sql.Outcome
	}{
		"not permitted":     {"create role custody_probe superuser;", sql.NotPermitted},
		"not installed":     {"create extension pgaudit_of_another_server;", sql.Unavailable},
		"permitted":         {"create schema custody_probe;", sql.Applied},
		"half of it denied": {"create schema custody_probe; create role custody_probe superuser;", sql.NotPermitted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			files := overlay(t, map[string]*string{"pgaudit.sql": &test.text})
			result := d.up(t, files)
			require.Equal(t, test.want, outcomes(result)["pgaudit"])
			step := result.Steps[len(result.Steps)-1]
			admin := connectTo(t, d.super)
			schemas := value[int](t, admin, `select count(*) from pg_namespace where nspname = 'custody_probe'`)
			if test.want == sql.Applied {
				require.Empty(t, step.Problem)
				require.Equal(t, 1, schemas)
				require.False(t, d.up(t, files).Changed())
			} else {
				require.Contains(t, step.Problem, "by hand")
				require.Zero(t, schemas, "all or nothing")
			}
			require.NoError(t, sql.CheckFiles(t.Context(), admin, files), "work does not wait for it")
		})
	}
	t.Run("as it is", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		require.Equal(t, sql.NotPermitted, outcomes(d.up(t))["pgaudit"])
		require.False(t, d.up(t).Changed())

		file, err := fs.ReadFile(sql.Files(), "pgaudit.sql")
		require.NoError(t, err)
		admin := connectTo(t, d.super)
		_, err = admin.Exec(t.Context(), string(file))
		require.NoError(t, err)
		require.Equal(t, sql.Unchanged, outcomes(d.up(t))["pgaudit"], "a DBA ran it by hand")
		status, err := sql.Status(t.Context(), d.config())
		require.NoError(t, err)
		require.Equal(t, "by hand", status.Parts[2].State)

		result := d.up(t, overlay(t, map[string]*string{
			next(1, "more"): text(`-- +goose Up
create table custody_data.one (a text);
comment on column custody_data.one.a is 'Name. @custody{"sensitivity":"identifying","retention":"until_erasure"}';
`),
		}))
		require.Equal(t, sql.NotPermitted, outcomes(result)["pgaudit"], "it does not know the new column")
	})
	t.Run("as it is, where the login may", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		admin := connectTo(t, d.super)
		// What managed hosts do for the login that owns the database; a login of its
		// own, because these rights belong to the cluster.
		login := d.name + "_owner"
		_, err := admin.Exec(t.Context(), fmt.Sprintf(`
create extension pgaudit;
create role %[1]s login createrole password 'known to this test';
alter database %[2]s owner to %[1]s`, login, d.name))
		require.NoError(t, err)
		url, err := neturl.Parse(d.url)
		require.NoError(t, err)
		url.User = neturl.UserPassword(login, "known to this test")
		d.url = url.String()
		var may []string
		for _, name := range []string{"role", "log", "log_catalog", "log_level", "log_parameter", "log_relation", "log_rows", "log_statement", "log_statement_once"} {
			may = append(may, "pgaudit."+name)
		}
		may = append(may, "log_parameter_max_length", "log_parameter_max_length_on_error")
		_, err = admin.Exec(t.Context(), "grant set on parameter "+strings.Join(may, ", ")+" to "+login)
		require.NoError(t, err)
		defer func() {
			_, err := admin.Exec(context.Background(), fmt.Sprintf(`
revoke set on parameter %[1]s from %[2]s;
drop extension pgcrypto cascade;
alter database %[3]s owner to custody_migrator;
drop role %[2]s`, strings.Join(may, ", "), login, d.name))
			require.NoError(t, err)
		}()
		result := d.up(t)
		require.Equal(t, sql.Applied, outcomes(result)["pgaudit"], "%+v", result.Steps)
		require.False(t, d.up(t).Changed())
	})
	t.Run("a mistake in it is a failure", func(t *testing.T) {
		t.Parallel()
		config := newDatabase(t).config()
		config.FS = overlay(t, map[string]*string{"pgaudit.sql": text("selct 1;")})
		_, err := sql.Up(t.Context(), config)
		require.ErrorContains(t, err, "pgaudit.sql:1:")
	})
}

func TestLoginWithoutTheRight(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	admin := connectTo(t, d.super)
	_, err := admin.Exec(t.Context(), "alter database "+d.name+" owner to current_user; grant connect on database "+d.name+" to custody_migrator")
	require.NoError(t, err)
	_, err = sql.Up(t.Context(), d.config())
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "42501", pg.Code)
	require.ErrorContains(t, err, "must own the database")
	require.Zero(t, value[int](t, admin, `select count(*) from pg_namespace where nspname ~ '^custody'`))
}

func TestAddressThatIsNone(t *testing.T) {
	_, err := sql.Up(t.Context(), sql.Config{URL: "postgres://user:secret@host:port/"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}

// tracer keeps what is sent to the server.
type tracer struct {
	mu         sync.Mutex
	statements []string
}

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statements = append(r.statements, data.SQL)
	return ctx
}

func (r *tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestPlanIsWhatRuns(t *testing.T) {
	t.Parallel()
	latest := int(sql.Latest())
	for _, version := range []int{0, 1, latest - 1, latest} {
		t.Run(fmt.Sprintf("from %d", version), func(t *testing.T) {
			t.Parallel()
			// Two databases in the same state: one is migrated, one gets the plan.
			migrated, planned := newDatabase(t), newDatabase(t)
			if version > 0 {
				migrated.up(t, versionsUpTo(t, version))
				planned.up(t, versionsUpTo(t, version))
			}
			before := planned.dump(t)
			var plan bytes.Buffer
			require.NoError(t, sql.Plan(t.Context(), planned.config(), &plan))
			requireSameDump(t, before, planned.dump(t))

			var sent tracer
			_, err := sql.Up(t.Context(), migrated.config().Traced(&sent))
			require.NoError(t, err)
			squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
			all := squeeze(plan.String())
			for _, statement := range sent.statements {
				if changes(statement) {
					require.Contains(t, all, strings.TrimSuffix(squeeze(statement), ";"))
				}
			}

			planned.psql(t, plan.String())
			requireSameDump(t, migrated.dump(t), planned.dump(t))
			require.Equal(t, migrated.steps(t), planned.steps(t))
			require.False(t, planned.up(t).Changed())
		})
	}
	t.Run("nothing to do", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		d.up(t)
		var plan bytes.Buffer
		require.NoError(t, sql.Plan(t.Context(), d.config(), &plan))
		require.NotContains(t, plan.String(), "+goose")
		require.NotContains(t, plan.String(), "schema_migrations (")
		require.NotContains(t, plan.String(), "river_migration")
	})
}

// changes tells statements of a migration from the migrator's own questions and
// its and River's records, whose parameters the plan writes out.
func changes(statement string) bool {
	word := strings.ToLower(strings.Fields(statement + " .")[0])
	switch {
	case strings.HasPrefix(statement, "-- name:"), statement == "select 1":
		return false
	case word == "begin", word == "commit", word == "rollback", word == "select":
		return false
	}
	return !strings.Contains(statement, "$1,") && statement != ";" && statement != "-- ping"
}

// psql runs a script as the login that migrates. Only the part on pgaudit may be
// denied to it.
func (d *database) psql(t *testing.T, script string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plan.sql")
	require.NoError(t, os.WriteFile(path, []byte(script), 0o600))
	command := exec.CommandContext(t.Context(), filepath.Join(d.stack.PGBin, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", d.url, "-f", path)
	var problem bytes.Buffer
	command.Stderr = &problem
	if command.Run() != nil {
		body, _, found := strings.Cut(script, "\n-- pgaudit.sql,")
		require.True(t, found, problem.String())
		var line int
		_, err := fmt.Sscanf(strings.TrimPrefix(problem.String(), "psql:"+path+":"), "%d:", &line)
		require.NoError(t, err, problem.String())
		require.Greater(t, line, strings.Count(body, "\n"), problem.String())
	}
}

type probeArgs struct {
	Number int `json:"number"`
}

func (probeArgs) Kind() string { return "probe" }

type probeWorker struct {
	river.WorkerDefaults[probeArgs]
	seen chan int
}

func (w *probeWorker) Work(_ context.Context, job *river.Job[probeArgs]) error {
	w.seen <- job.Args.Number
	return nil
}

// The grants of river.sql are enough for the runner's login.
func TestRunnerMayWorkJobs(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	config, err := pgxpool.ParseConfig(d.super)
	require.NoError(t, err)
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "set role custody_worker; set search_path = ''")
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	defer pool.Close()

	workers, worker := river.NewWorkers(), &probeWorker{seen: make(chan int)}
	river.AddWorker(workers, worker)
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: "river", Workers: workers, ReindexerIndexNames: []string{},
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}},
	})
	require.NoError(t, err)
	require.NoError(t, client.Start(t.Context()))
	require.Eventually(t, func() bool {
		var leaders int
		return pool.QueryRow(t.Context(), "select count(*) from river.river_leader").Scan(&leaders) == nil && leaders == 1
	}, 10*time.Second, 20*time.Millisecond, "one runner schedules")
	job, err := client.Insert(t.Context(), probeArgs{42}, &river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}})
	require.NoError(t, err)
	require.Equal(t, 42, <-worker.seen)
	require.Eventually(t, func() bool {
		row, err := client.JobGet(t.Context(), job.Job.ID)
		return err == nil && row.State == "completed"
	}, 10*time.Second, 20*time.Millisecond)
	_, err = client.JobDelete(t.Context(), job.Job.ID)
	require.NoError(t, err)
	require.NoError(t, client.Stop(context.Background()))

	_, err = pool.Exec(t.Context(), "truncate river.river_job")
	require.Error(t, err)
}

// --json prints these; names and shape are kept.
func TestShapeOfReports(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	d.up(t)
	report, err := sql.Status(t.Context(), d.config())
	require.NoError(t, err)
	data, err := json.Marshal(report)
	require.NoError(t, err)
	var shape struct {
		Relation string
		Known    int64
		Versions []map[string]any
		Parts    []map[string]any
	}
	require.NoError(t, json.Unmarshal(data, &shape))
	require.Equal(t, "current", shape.Relation)
	require.Len(t, shape.Versions, len(versionedFiles(t)))
	require.Equal(t, "applied", shape.Versions[0]["state"])
	require.Equal(t, "routines", shape.Parts[0]["part"])
}
