package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgcustody/sql"
)

// groups may connect to a database that is open. Logins are members of one or more.
var groups = []string{
	"custody_admin", "custody_auditor", "custody_backup", "custody_privacy", "custody_readonly", "custody_readwrite", "custody_worker",
}

// target is the database that a backup is restored into.
type target struct {
	server *server
	conn   *pgx.Conn
	super  bool
	system string // identifier of the cluster
}

// mark is what the comment of the database says while it is being restored: it tells
// an unfinished restore, which the next run may throw away, from somebody's data.
type mark struct {
	Restore string `json:"pgcustody_restore"` // id of the backup
	Phase   string `json:"phase"`
	Keys    bool   `json:"keys"`
}

const (
	phaseLoading = "loading" // the next run begins anew
	phaseLoaded  = "loaded"  // everything is there, erasures may be missing
)

// openTarget connects, and makes the database where there is none.
func openTarget(ctx context.Context, server *server) (_ *target, err error) {
	conn, err := server.connect(ctx, "restore")
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "3D000" { // invalid_catalog_name
		if err := createDatabase(ctx, server); err != nil {
			return nil, err
		}
		conn, err = server.connect(ctx, "restore")
	}
	if err != nil {
		return nil, err
	}
	t := &target{server: server, conn: conn}
	defer func() {
		if err != nil {
			t.close(ctx)
		}
	}()
	var mayCreate, owner, recovering bool
	if err := conn.QueryRow(ctx, `
		select r.rolsuper, r.rolcreaterole,
		  pg_catalog.pg_has_role(d.datdba, 'usage'), pg_catalog.pg_is_in_recovery(), (select c.system_identifier::text from pg_catalog.pg_control_system() c)
		from pg_catalog.pg_roles r, pg_catalog.pg_database d
		where r.rolname = session_user and d.datname = pg_catalog.current_database()`).
		Scan(&t.super, &mayCreate, &owner, &recovering, &t.system); err != nil {
		return nil, err
	}
	switch {
	case recovering:
		return nil, &Error{Code: exitRefused, What: "the target is a standby", Do: "give a primary in --into"}
	case !t.super && (!mayCreate || !owner):
		return nil, &Error{Code: exitPermission, What: "login " + server.config.User + " may not restore into " + server.config.Database,
			Do: "give a superuser in --into, or the login for migrations: it owns the database and has CREATEROLE"}
	}
	switch alone, err := onlyOne(ctx, conn, "pgcustody.restore"); {
	case err != nil:
		return nil, err
	case !alone:
		return nil, &Error{Code: exitRefused, What: "another restore into " + server.config.Database + " is under way", Do: "let it end"}
	}
	return t, nil
}

func (t *target) close(ctx context.Context) { _ = t.conn.Close(context.WithoutCancel(ctx)) }

func createDatabase(ctx context.Context, server *server) error {
	conn, err := server.withDatabase("postgres").connect(ctx, "restore")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	name := pgx.Identifier{server.config.Database}.Sanitize()
	_, err = conn.Exec(ctx, "create database "+name+" with template template0 encoding 'UTF8'")
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42501" {
		return &Error{Code: exitPermission, What: "there is no database " + server.config.Database + ", and login " + server.config.User + " may not make it",
			Do: "create database " + name + " owner " + pgx.Identifier{server.config.User}.Sanitize(), Err: err}
	}
	return err
}

// fits looks at whether the cluster has what the backup needs, before anything is done.
func (t *target) fits(ctx context.Context, m *Manifest) error {
	wrong := func(what, do string) error {
		return &Error{Code: exitRefused, What: what, Object: "nothing was changed", Do: do}
	}
	var major int
	if err := t.conn.QueryRow(ctx, `select pg_catalog.current_setting('server_version_num')::int / 10000`).Scan(&major); err != nil {
		return err
	}
	if major < m.PostgresMajor {
		return wrong(fmt.Sprintf("the backup is of Postgres %d, the target is %d", m.PostgresMajor, major), "restore into the same version or a later one")
	}
	report, err := sql.Inspect(ctx, t.conn)
	if err != nil {
		return err
	}
	if m.SchemaVersion > report.Known {
		return wrong(fmt.Sprintf("the backup has version %d of the schema, this pgcustody knows %d", m.SchemaVersion, report.Known), "use a newer pgcustody")
	}
	rows, err := t.conn.Query(ctx, `
		select n from pg_catalog.unnest($1::text[]) n
		where not exists (select from pg_catalog.pg_roles r where r.rolname = n) order by 1`, m.Roles)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var others []string
	for _, role := range missing {
		// Those of pgcustody the restore makes itself.
		if role != "custody_owner" && !slices.Contains(groups, role) {
			others = append(others, role)
		}
	}
	if len(others) > 0 {
		return wrong("the cluster lacks roles that the backup names: "+strings.Join(others, ", "), "make them first, as with pg_dumpall --roles-only --no-role-passwords; pgaudit.sql makes custody_pgaudit")
	}
	for _, e := range m.Extensions {
		var there bool
		if err := t.conn.QueryRow(ctx, `select exists (select from pg_catalog.pg_available_extensions a where a.name = $1)`, e.Name).Scan(&there); err != nil {
			return err
		}
		if !there {
			return wrong("the server lacks extension "+e.Name+", which the backup has", "install it")
		}
		if !e.Trusted && !t.super {
			return wrong("extension "+e.Name+" of the backup needs a superuser", "give one in --into")
		}
	}
	return nil
}

// state reads the mark of an unfinished restore; an unmarked database must be empty.
func (t *target) state(ctx context.Context) (*mark, error) {
	var comment *string
	var content []string
	var opened bool
	if err := t.conn.QueryRow(ctx, `
		select pg_catalog.shobj_description(d.oid, 'pg_database'),
		  array(
		    select 'schema ' || n.nspname from pg_catalog.pg_namespace n
		    where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'public')
		    union all
		    select 'extension ' || e.extname from pg_catalog.pg_extension e where e.extname <> 'plpgsql'
		    union all
		    select c.oid::regclass::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'public'
		    union all
		    select p.oid::regprocedure::text from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = 'public'
		    order by 1 limit 5),
		  exists (
		    select from pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
		    where a.privilege_type = 'CONNECT' and a.grantee <> d.datdba)
		from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()`).Scan(&comment, &content, &opened); err != nil {
		return nil, err
	}
	if comment != nil {
		m := new(mark)
		if json.Unmarshal([]byte(*comment), m) == nil && m.Restore != "" && (m.Phase == phaseLoading || m.Phase == phaseLoaded) {
			// Closing and marking are one transaction.
			if opened {
				return nil, &Error{Code: exitRefused, What: "database " + t.server.config.Database + " was opened by hand while it was being restored", Object: "somebody may work in it",
					Do: "nothing was changed; give another name, or drop it"}
			}
			return m, nil
		}
	}
	if len(content) > 0 {
		return nil, &Error{Code: exitRefused, What: "database " + t.server.config.Database + " is not empty", Object: "it has " + strings.Join(content, ", "),
			Do: "nothing was changed; give the name of a database that is empty, or of one that is to be made"}
	}
	return nil, nil
}

// shut keeps everybody out but superusers, the owner and this login, and notes what
// the database is for now.
func (t *target) shut(ctx context.Context, m mark) error {
	name := pgx.Identifier{t.server.config.Database}.Sanitize()
	err := pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			select distinct a.grantee, pg_catalog.pg_get_userbyid(a.grantee)::text
			from pg_catalog.pg_database d, pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
			where d.datname = pg_catalog.current_database() and a.grantee <> d.datdba`)
		if err != nil {
			return err
		}
		var oid uint32
		var role string
		statements := []string{}
		if _, err := pgx.ForEachRow(rows, []any{&oid, &role}, func() error {
			grantee := "public"
			if oid != 0 {
				grantee = pgx.Identifier{role}.Sanitize()
			}
			statements = append(statements, "revoke all on database "+name+" from "+grantee)
			return nil
		}); err != nil {
			return err
		}
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return t.comment(ctx, tx, m)
	})
	if err != nil {
		return fmt.Errorf("close database %s: %w", t.server.config.Database, err)
	}

	var others []string
	if err := t.conn.QueryRow(ctx, `
		select array(
		  select r.rolname::text from pg_catalog.pg_roles r, pg_catalog.pg_database d
		  where d.datname = pg_catalog.current_database() and r.rolcanlogin and not r.rolsuper and r.rolname <> session_user and r.oid <> d.datdba
		    and pg_catalog.has_database_privilege(r.oid, d.oid, 'connect') order by 1)`).Scan(&others); err != nil {
		return err
	}
	if len(others) > 0 {
		return &Error{Code: exitRefused, What: "other logins may connect to " + t.server.config.Database, Object: strings.Join(others, ", "),
			Do: "take them out of the roles that own the database"}
	}
	// Who had connected before stays connected. A program of ours that was left behind ends soon.
	deadline := time.Now().Add(time.Minute)
	for {
		if err := t.conn.QueryRow(ctx, `
			select array(
			  select pg_catalog.format('%s (pid %s)', a.usename, a.pid) from pg_catalog.pg_stat_activity a
			  where a.datname = pg_catalog.current_database() and a.usename is not null and a.pid <> pg_catalog.pg_backend_pid() order by 1)`).Scan(&others); err != nil {
			return err
		}
		if len(others) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &Error{Code: exitRefused, What: "others are connected to " + t.server.config.Database, Object: strings.Join(others, ", "), Do: "end their sessions, then run again"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type execer interface {
	Exec(ctx context.Context, statement string, args ...any) (pgconn.CommandTag, error)
}

func (t *target) comment(ctx context.Context, q execer, value any) error {
	text, ok := value.(string)
	if !ok {
		encoded, err := json.Marshal(value)
		if err != nil {
			return err
		}
		text = string(encoded)
	}
	// The id of a backup and our own words: nothing that a quote could end.
	_, err := q.Exec(ctx, fmt.Sprintf("comment on database %s is '%s'", pgx.Identifier{t.server.config.Database}.Sanitize(), strings.ReplaceAll(text, "'", "''")))
	return err
}

// empty throws away what an unfinished restore left.
func (t *target) empty(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			select statement from (
			  select 1, pg_catalog.format('drop extension %I cascade', e.extname) from pg_catalog.pg_extension e where e.extname <> 'plpgsql'
			  union all
			  select 2, pg_catalog.format('drop schema %I cascade', n.nspname) from pg_catalog.pg_namespace n
			  where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
			) s (step, statement) order by step`)
		if err != nil {
			return err
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		statements = append(statements, "create schema public", "comment on schema public is 'standard public schema'",
			"alter schema public owner to pg_database_owner", "grant usage on schema public to public")
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty database %s: %w", t.server.config.Database, err)
	}
	return nil
}

// makeRoles makes pgcustody's roles where the cluster has none, by the file that makes
// them for migrations, and takes back what else that makes.
func (t *target) makeRoles(ctx context.Context) error {
	text, err := fs.ReadFile(sql.Files(), "bootstrap.sql")
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		for _, statement := range []string{
			string(text),
			"drop schema custody, custody_data, custody_keys, custody_check cascade",
			"drop extension pgcrypto",
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make roles: %w", err)
	}
	return nil
}

// open lets pgcustody's group roles in, and notes what the database is.
func (t *target) open(ctx context.Context, id string) error {
	name := pgx.Identifier{t.server.config.Database}.Sanitize()
	err := pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "grant connect on database "+name+" to "+strings.Join(groups, ", ")); err != nil {
			return err
		}
		return t.comment(ctx, tx, "Restored by pgcustody from backup "+id+" at "+time.Now().UTC().Format(time.RFC3339)+".")
	})
	if err != nil {
		return fmt.Errorf("open database %s: %w", t.server.config.Database, err)
	}
	return nil
}
