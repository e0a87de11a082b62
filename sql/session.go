package sql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// lockKey is the advisory lock that migrations of one database take turns by.
// It is no secret: whoever changes the schema by hand can take it too.
const lockKey int64 = 0x706763757374 // "pgcust"

// owner is the role that everything belongs to.
const owner = "custody_owner"

// session is one server session that goose, River and the migrator share. The
// session holds the advisory lock, so work and lock end together: a lost session
// is never replaced by a second one without the lock.
type session struct {
	pool    *pgxpool.Pool
	db      *sql.DB // the same connection, for goose
	command string
}

// errSessionLost is what every call gets after the connection broke.
var errSessionLost = errors.New("the migration's connection was lost: run the command again, it goes on where it stopped")

// addressError says that the configured address will not do.
type addressError string

func (e addressError) Error() string { return string(e) }

// ExitCode is what the command line exits with.
func (e addressError) ExitCode() int { return 2 }

func connect(ctx context.Context, cfg Config, command string) (*session, error) {
	config, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// The parser's message may repeat the password.
		return nil, addressError("the migration login's address is not a PostgreSQL address")
	}
	config.MaxConns, config.MinConns, config.MinIdleConns = 1, 0, 0
	config.MaxConnLifetime, config.MaxConnIdleTime = 365*24*time.Hour, 365*24*time.Hour
	var connected atomic.Bool
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if connected.Load() {
			return errSessionLost
		}
		return nil
	}
	config.AfterConnect = func(context.Context, *pgx.Conn) error {
		connected.Store(true)
		return nil
	}
	config.ConnConfig.Tracer = cfg.tracer

	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &session{pool: pool, db: stdlib.OpenDBFromPool(pool), command: command}
	if err := s.prepare(ctx, cfg); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) prepare(ctx context.Context, cfg Config) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	var backend uint32
	if err := conn.QueryRow(ctx, "select pg_catalog.pg_backend_pid()").Scan(&backend); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if backend != conn.Conn().PgConn().PID() {
		return addressError("the connection goes through a pooler: migrations hold a session lock and need a direct connection to the server")
	}
	if _, err := conn.Exec(ctx, settings(cfg)); err != nil {
		return fmt.Errorf("set up session: %w", err)
	}
	return nil
}

// settings are the same for every migration, whatever the role or the database
// has set: an unqualified name must fail, not find somebody else's object.
func settings(cfg Config) string {
	return strings.Join([]string{
		"set search_path = ''",
		fmt.Sprintf("set lock_timeout = %d", cmp.Or(cfg.LockTimeout, 10*time.Second).Milliseconds()),
		"set statement_timeout = 0",
		"set idle_in_transaction_session_timeout = 0",
		"set client_connection_check_interval = 2000",
		"set default_transaction_isolation = 'read committed'",
		"set default_transaction_read_only = off",
		"set check_function_bodies = on",
		"set standard_conforming_strings = on",
		"set client_min_messages = warning",
		"set timezone = 'UTC'",
		"set datestyle = 'ISO, YMD'",
		"set intervalstyle = 'postgres'",
	}, ";\n") + ";"
}

// at names the command and the step to whoever looks at pg_stat_activity.
func (s *session) at(ctx context.Context, step string) error {
	name := "pgcustody " + s.command + "/" + step
	_, err := s.pool.Exec(ctx, "select pg_catalog.set_config('application_name', $1, false)", name[:min(len(name), 63)])
	return err
}

// as makes what follows run as the owner, or as the login itself.
func (s *session) asOwner(ctx context.Context) error { return s.exec(ctx, "set role "+owner) }
func (s *session) asLogin(ctx context.Context) error { return s.exec(ctx, "reset role") }

func (s *session) exec(ctx context.Context, text string) error {
	_, err := s.pool.Exec(ctx, text)
	return err
}

// execTx runs files in one transaction. An error names file and line.
func (s *session) execTx(ctx context.Context, files []file, also func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		for _, f := range files {
			if _, err := tx.Exec(ctx, f.text); err != nil {
				return atLine(f, err)
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
}

func atLine(f file, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Position > 0 {
		runes := []rune(f.text)
		before := string(runes[:min(int(pg.Position)-1, len(runes))])
		return fmt.Errorf("%s:%d: %w", f.name, 1+strings.Count(before, "\n"), err)
	}
	return fmt.Errorf("%s: %w", f.name, err)
}

// lock waits for other migrations of this database. It asks again and again
// rather than sleep in a statement, whose snapshot would hold back vacuum and
// the sealing of the audit trail.
func (s *session) lock(ctx context.Context, cfg Config) error {
	wait := cmp.Or(cfg.LockWait, 5*time.Minute)
	deadline := time.Now().Add(wait)
	for told := false; ; told = true {
		var locked bool
		if err := s.pool.QueryRow(ctx, "select pg_catalog.pg_try_advisory_lock($1)", lockKey).Scan(&locked); err != nil {
			return fmt.Errorf("take migration lock: %w", err)
		}
		if locked {
			return nil
		}
		if time.Now().After(deadline) {
			return &StateError{Relation: Locked, Problem: fmt.Sprintf("another migration holds the lock for longer than %s", wait)}
		}
		if !told {
			cfg.Logger.InfoContext(ctx, "another migration holds the lock, waiting")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// close ends the session, and the lock with it.
func (s *session) close() {
	s.db.Close()
	s.pool.Close()
}
