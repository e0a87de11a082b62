package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs"
	"pgcustody/jobs/keys"
	"pgcustody/sql"
)

// tenant is whose data all figures work on.
const tenant = "bench"

// The logins that figures measure with: they have the application's and the
// runner's rights, no more.
const (
	appLogin    = "custody_app"
	runnerLogin = "custody_runner"
)

// settings of the server that differ from the stack's. A laptop's defaults would
// measure the checkpointer.
var settings = [][2]string{
	{"shared_buffers", "4GB"},
	{"max_wal_size", "16GB"},
	{"checkpoint_timeout", "30min"},
	{"checkpoint_completion_target", "0.9"},
	{"work_mem", "16MB"},
}

// bench is one run.
type bench struct {
	quick    bool
	long     bool
	stack    *stack.Stack
	keep     bool
	log      *slog.Logger
	template string
	provider keys.Provider
	kek      keys.Key // of the tenant, in all databases
	rows     []row
}

func newBench(ctx context.Context, dir string, quick bool, log *slog.Logger) (_ *bench, err error) {
	b := &bench{quick: quick, keep: dir != "", log: log}
	if !b.keep {
		if dir, err = os.MkdirTemp("", "pgcustody-bench-"); err != nil {
			return nil, err
		}
	}
	options := stack.Options{Dir: dir, NoFsync: quick, Ephemeral: !b.keep}
	if b.stack, err = stack.Start(ctx, options); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(context.WithoutCancel(ctx)))
		}
	}()

	if !quick {
		var changed []string
		for _, s := range settings {
			changed = append(changed, fmt.Sprintf("alter system set %s = '%s'", s[0], s[1]))
		}
		if err := b.super(ctx, "postgres", changed...); err != nil {
			return nil, fmt.Errorf("tune the server: %w", err)
		}
		if err := b.stack.Stop(ctx); err != nil {
			return nil, err
		}
		options.Ephemeral = false // the first start has seen to it
		if b.stack, err = stack.Start(ctx, options); err != nil {
			return nil, err
		}
	}

	b.template = "bench_template"
	if err := b.makeTemplate(ctx); err != nil {
		return nil, fmt.Errorf("make the template database: %w", err)
	}
	return b, nil
}

func (b *bench) close(ctx context.Context) error {
	if b.stack == nil || b.keep {
		return nil
	}
	return b.stack.Destroy(ctx)
}

// makeTemplate migrates the database that each figure gets a copy of.
func (b *bench) makeTemplate(ctx context.Context) error {
	if err := b.stack.DropDatabase(ctx, b.template); err != nil {
		return err
	}
	if err := b.stack.CreateDatabase(ctx, b.template, ""); err != nil {
		return err
	}
	if err := b.super(ctx, b.template, "create extension pgaudit"); err != nil {
		return err
	}
	if err := b.stack.OpenMigrator(ctx); err != nil {
		return err
	}
	if _, err := sql.Up(ctx, sql.Config{URL: b.stack.URL(stack.MigratorLogin, b.template)}); err != nil {
		return err
	}
	if err := b.stack.CloseMigrator(ctx); err != nil {
		return err
	}
	if err := b.stack.PutLogins(ctx, b.template); err != nil {
		return err
	}
	if err := b.super(ctx, b.template,
		"insert into custody_data.tenants (tenant_id, name) values ('"+tenant+"', 'Benchmark')",
		"create schema bench",
		"grant usage on schema bench to custody_readwrite, custody_worker",
		// What a sealed value of a text looks like from outside; nothing opens it.
		`create function bench.sealed(p_text text) returns custody_data.sealed_value language sql immutable parallel safe
		return '\x0100000001'::bytea || decode(repeat(md5(p_text), octet_length(p_text) / 16 + 4), 'hex')`,
		"alter default privileges in schema bench grant all on tables to custody_readwrite, custody_worker"); err != nil {
		return err
	}
	return b.makeKey(ctx)
}

// makeKey gives the template's tenant its key, and keeps it.
func (b *bench) makeKey(ctx context.Context) (err error) {
	if b.provider, err = keys.Parse(ctx, "file:"+b.stack.KeyDir(), false); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.stack.URL(runnerLogin, b.template))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) // a template has no sessions
	ring := jobs.Keyring{Pool: conn, Provider: b.provider, Actor: "officer"}
	if _, err := ring.Create(ctx, tenant); err != nil {
		return err
	}
	b.kek, err = ring.Current(ctx, tenant)
	return err
}

// super runs statements as the superuser, each on its own.
func (b *bench) super(ctx context.Context, database string, statements ...string) error {
	conn, err := pgx.Connect(ctx, b.stack.SuperURL(database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(statement[:min(len(statement), 200)]), " "))
		}
	}
	return nil
}

// database is a migrated database of one figure.
type database struct {
	*bench
	name    string
	options string // PGOPTIONS of Postgres's own programs
}

// database makes one that done drops again.
func (b *bench) database(ctx context.Context, label string) (d *database, done func(), err error) {
	d = &database{bench: b, name: "bench_" + label}
	drop := func() error { return b.stack.DropDatabase(context.WithoutCancel(ctx), d.name) }
	if err := drop(); err != nil {
		return nil, nil, err
	}
	if err := b.stack.CreateDatabase(ctx, d.name, b.template); err != nil {
		return nil, nil, err
	}
	return d, func() {
		if err := drop(); err != nil {
			b.log.Warn("database stays", "name", d.name, "error", err)
		}
	}, nil
}

// load runs statements as the superuser, who passes row-level security.
func (d *database) load(ctx context.Context, statements ...string) error {
	started := time.Now()
	err := d.super(ctx, d.name, statements...)
	d.log.Info("loaded", "database", d.name, "duration", time.Since(started).Round(time.Millisecond))
	return err
}

// pool connects a login, with every statement prepared as pgx does by itself.
func (d *database) pool(ctx context.Context, login string) (*pgxpool.Pool, error) {
	url := d.stack.URL(login, d.name)
	if login == stack.Superuser {
		url = d.stack.SuperURL(d.name)
	}
	return pgxpool.New(ctx, url)
}

// triggersOff keeps guards from seeing rows that are loaded, which are no
// events; triggersOn puts them back as the migrations have them.
func triggersOff(table string) string {
	return "alter table custody_data." + table + " disable trigger user"
}

func triggersOn(table string) string {
	return fmt.Sprintf(`do $$
declare v_trigger name;
begin
  for v_trigger in select tgname from pg_trigger where tgrelid = 'custody_data.%[1]s'::regclass and not tgisinternal loop
    execute format('alter table custody_data.%[1]s enable always trigger %%I', v_trigger);
  end loop;
end $$`, table)
}

// people makes persons named prefix1, prefix2, …, whose identity is the digest
// of their name, so that a script knows it without looking it up.
func people(prefix string, n int) string {
	return fmt.Sprintf(`insert into custody_data.identities (tenant_id, identity_id, user_id)
		select '%s', md5('%[2]s' || n)::uuid, '%[2]s' || n from generate_series(1, %[3]d) n`, tenant, prefix, n)
}

// partitions makes the months of the trail that a span needs.
func partitions(from, to string) string {
	return fmt.Sprintf("select custody.ensure_audit_partitions(%s, %s)", from, to)
}

// bareTrail is a table of the columns, defaults, indexes and partitions of
// audit_logs, without policies, checks and guards.
var bareTrail = []string{
	"create table bench.audit_logs (like custody_data.audit_logs including defaults including indexes) partition by range (occurred_at)",
	`do $$
declare v_child record;
begin
  for v_child in
    select c.relname, pg_get_expr(c.relpartbound, c.oid) as bound
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'custody_data.audit_logs'::regclass
  loop
    execute format('create table bench.%I partition of bench.audit_logs %s', v_child.relname, v_child.bound);
  end loop;
end $$`,
}

// pgProgram is one of Postgres's own programs, told where the database is.
func (d *database) pgProgram(ctx context.Context, login, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.stack.PGBin+"/"+program, args...)
	cmd.Env = append(os.Environ(),
		"PGHOST=localhost", fmt.Sprintf("PGPORT=%d", d.stack.PGPort), "PGDATABASE="+d.name, "PGUSER="+login,
		"PGPASSWORD="+d.stack.Passwords[login], "PGSSLMODE=verify-full", "PGSSLROOTCERT="+d.stack.RootCert(), "PGOPTIONS="+d.options)
	return cmd
}
