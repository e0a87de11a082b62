package stack

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// Superuser is the cluster's own. The product never needs it.
	Superuser = "custody_super"
	// MigratorLogin owns the database and may create roles, no more.
	MigratorLogin = "custody_migrator"
)

// Login is a login role with what it is a member of. It has no other right
// than to connect.
type Login struct {
	Name     string
	Groups   []string
	Variable string // of the environment that holds its URL
}

// Logins are one login for each kind of user of the database.
var Logins = []Login{
	{"custody_app", []string{"custody_readwrite"}, "DEVSTACK_APP_URL"},
	{"custody_reports", []string{"custody_readonly"}, "DEVSTACK_REPORTS_URL"},
	{"custody_runner", []string{"custody_worker", "custody_privacy"}, ""}, // has PG*
	{"custody_dpo", []string{"custody_privacy"}, "DEVSTACK_DPO_URL"},
	{"custody_audit", []string{"custody_auditor"}, "DEVSTACK_AUDIT_URL"},
	{"custody_dump", []string{"custody_backup"}, "DEVSTACK_DUMP_URL"},
}

// connect connects as the superuser.
func (s *Stack) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.SuperURL(database))
}

// asSuperuser runs statements one after the other, each on its own.
func (s *Stack) asSuperuser(ctx context.Context, database string, statements ...string) error {
	conn, err := s.connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// prepareCluster makes the login for migrations and the database that it owns.
// It may have been interrupted before.
func (s *Stack) prepareCluster(ctx context.Context) error {
	role, err := s.putLogin(MigratorLogin, "createrole")
	if err != nil {
		return err
	}
	if err := s.asSuperuser(ctx, "postgres", role); err != nil {
		return fmt.Errorf("make login %s: %w", MigratorLogin, err)
	}
	err = s.CreateDatabase(ctx, Database, "")
	if isCode(err, "42P04") { // duplicate_database
		return nil
	}
	return err
}

// isCode tells whether the server refused with this SQLSTATE.
func isCode(err error, code string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == code
}

// putLogin is the statement that makes a login or gives it its password again. None is a
// person's: the comment says so to pgcustody check.
func (s *Stack) putLogin(name, attributes string) (string, error) {
	verifier, err := scramVerifier(s.Passwords[name])
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = '%[1]s') then
    create role %[1]s;
  end if;
  alter role %[1]s login nosuperuser %[2]s password '%[3]s';
  comment on role %[1]s is 'Of programs. @custody{"login":"application"}';
end
$$`, name, attributes, verifier), nil
}

// PutLogins makes the logins beside the migrator's, or makes them right again,
// and lets them connect to a database. Their groups come with the first migration.
func (s *Stack) PutLogins(ctx context.Context, database string) error {
	var statements []string
	for _, l := range Logins {
		role, err := s.putLogin(l.Name, "nocreaterole")
		if err != nil {
			return fmt.Errorf("make login %s: %w", l.Name, err)
		}
		statements = append(statements, role)
		for _, group := range l.Groups {
			statements = append(statements, fmt.Sprintf("grant %s to %s", group, l.Name))
		}
		statements = append(statements, fmt.Sprintf("grant connect on database %s to %s", quote(database), l.Name))
	}
	err := s.asSuperuser(ctx, database, statements...)
	if isCode(err, "42704") { // undefined_object
		return fmt.Errorf("make logins: the group roles are not there yet, migrate first: %w", err)
	} else if err != nil {
		return fmt.Errorf("make logins: %w", err)
	}
	return nil
}

// OpenMigrator lets the migrator's login connect. Between migrations it stays
// closed, because it can act as the owner of everything.
func (s *Stack) OpenMigrator(ctx context.Context) error {
	return s.asSuperuser(ctx, "postgres", "alter role "+MigratorLogin+" login")
}

// CloseMigrator locks the migrator's login out and ends its sessions.
func (s *Stack) CloseMigrator(ctx context.Context) error {
	return s.asSuperuser(ctx, "postgres", "alter role "+MigratorLogin+" nologin",
		"select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where usename = '"+MigratorLogin+"'")
}

// CreateDatabase makes a database that the migrator owns and nobody else may
// connect to. As a copy of a template it gets the template's grants and
// settings too, which Postgres itself does not copy.
func (s *Stack) CreateDatabase(ctx context.Context, name, template string) error {
	conn, err := s.connect(ctx, "postgres")
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	create := fmt.Sprintf("create database %s owner %s", quote(name), MigratorLogin)
	if template != "" {
		create += " template " + quote(template)
	}
	for _, statement := range []string{create, fmt.Sprintf("revoke all on database %s from public", quote(name))} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("create database %s: %w", name, err)
		}
	}
	if template == "" {
		return nil
	}
	if err := copyRights(ctx, conn, name, template); err != nil {
		return fmt.Errorf("create database %s: copy grants and settings of %s: %w", name, template, err)
	}
	return nil
}

// copyRights needs a connection of its own: it is left with the settings that
// it copied.
func copyRights(ctx context.Context, conn *pgx.Conn, to, from string) error {
	rows, err := conn.Query(ctx, `
		select pg_catalog.format('grant %s on database %I to %s', a.privilege_type, $1::text,
		  case when a.grantee = 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end)
		from pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a
		where d.datname = $2`, to, from)
	if err != nil {
		return err
	}
	grants, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, grant := range grants {
		if _, err := conn.Exec(ctx, grant); err != nil {
			return err
		}
	}

	type setting struct{ Alter, Name, Value string }
	rows, err = conn.Query(ctx, `
		select case when s.setrole = 0 then pg_catalog.format('alter database %I', $1::text)
		  else pg_catalog.format('alter role %I in database %I', pg_catalog.pg_get_userbyid(s.setrole), $1::text) end as alter,
		  pg_catalog.split_part(c, '=', 1) as name, pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1) as value
		from pg_catalog.pg_db_role_setting s
		join pg_catalog.pg_database d on d.oid = s.setdatabase, pg_catalog.unnest(s.setconfig) c
		where d.datname = $2`, to, from)
	if err != nil {
		return err
	}
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		return err
	}
	for _, s := range settings {
		// The stored form of a list, as in search_path, is not what SET takes; set_config takes it.
		if _, err := conn.Exec(ctx, "select pg_catalog.set_config($1, $2, false)", s.Name, s.Value); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, s.Alter+" set "+s.Name+" from current"); err != nil {
			return err
		}
	}
	return nil
}

// DropDatabase drops a database and ends all sessions in it.
func (s *Stack) DropDatabase(ctx context.Context, name string) error {
	if err := s.asSuperuser(ctx, "postgres", fmt.Sprintf("drop database if exists %s with (force)", quote(name))); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

// scramVerifier is what Postgres stores of a password. Sent instead of it, the
// password itself can reach no log and no statistics.
func scramVerifier(password string) (string, error) {
	const iterations = 4096
	salt := make([]byte, 16)
	rand.Read(salt) // never fails
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(message string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(message))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
