// Package backup writes the database and its keys apart into the locked store,
// encrypted, and brings them back into a cluster that nobody can read before
// every later erasure has been repeated.
//
// Nothing of it touches a disk in plaintext: pg_dump's output goes through age
// into the store, and back through age into pg_restore.
package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/store"
)

// Job is the name under which runs are recorded.
const Job = "backup"

// firstLock is how long an object is locked while it is not yet part of a backup:
// what a process that was killed leaves behind is gone after it.
const firstLock = 48 * time.Hour

// Config says how a backup is made.
type Config struct {
	// URL is the address of the database as a login of custody_backup, over TLS, not
	// through a pooler.
	URL string
	// Runner records the run, as a login of custody_worker, under Actor.
	Runner *pgxpool.Pool
	Actor  string
	Store  store.Store
	// Accept names findings about the store in spite of which it is written to.
	Accept []string
	// Recipients may open it.
	Recipients Recipients
	// KeepData and KeepKeys are how long each is locked, and kept.
	KeepData, KeepKeys time.Duration
	// PGBin is where pg_dump is; empty looks along PATH.
	PGBin string
	Log   *slog.Logger
	// OnProgress may be nil. It is called from one goroutine at a time.
	OnProgress func(jobs.Progress)
}

// Result is a backup that was made.
type Result struct {
	*Manifest
	// ManifestSHA256 tells this manifest from one that somebody else put there.
	ManifestSHA256 string `json:"manifest_sha256"`
	Pruned         Pruned `json:"pruned"`
}

func (c *Config) check() error {
	switch {
	case c.KeepData <= 0:
		return &Error{Code: exitUsage, What: "--keep", Object: c.KeepData.String(), Do: "must be positive, as in 90d"}
	case c.KeepKeys <= 0:
		return &Error{Code: exitUsage, What: "--keep-keys", Object: c.KeepKeys.String(), Do: "must be positive, as in 7d"}
	case c.KeepKeys > c.KeepData:
		return &Error{Code: exitUsage, What: "--keep-keys", Object: c.KeepKeys.String(), Do: "keys must not be kept for longer than the data, " + c.KeepData.String()}
	}
	return nil
}

// run is one backup on its way.
type run struct {
	*Config
	server   *server
	conn     *pgx.Conn // holds the snapshot, and the lock that keeps other backups out
	snapshot string
	id       uuid.UUID // of the record
	manifest *Manifest
}

// Run makes a backup and then deletes those whose time is over. It is recorded as a
// run of tenant system, also when it fails. Nothing counts as a backup before its
// manifest is there, which is written last.
func Run(ctx context.Context, config Config) (*Result, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	server, err := parseServer("--backup-url", config.URL, config.PGBin)
	if err != nil {
		return nil, err
	}
	r := &run{Config: &config, server: server}
	findings, err := config.Store.CheckSettings(ctx)
	if err == nil {
		err = store.Accept(findings, config.Accept)
	}
	if err != nil {
		return nil, err
	}
	if r.conn, err = server.connect(ctx, Job); err != nil {
		return nil, err
	}
	defer r.conn.Close(context.WithoutCancel(ctx))
	if err := r.alone(ctx); err != nil {
		return nil, err
	}
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	result, err := r.make(ctx)
	return result, errors.Join(err, r.end(ctx, result, err))
}

// alone keeps a second backup of this database out, and looks at what the login may do.
func (r *run) alone(ctx context.Context) error {
	var member bool
	err := r.conn.QueryRow(ctx, `
		select exists (select from pg_catalog.pg_roles r where r.rolname = 'custody_backup' and pg_catalog.pg_has_role(r.oid, 'member'))`).Scan(&member)
	if err != nil {
		return err
	}
	if !member {
		return &Error{Code: exitPermission, What: "login " + r.server.config.User + " is no member of custody_backup", Do: "grant custody_backup to it, or name another login in --backup-url"}
	}
	switch alone, err := onlyOne(ctx, r.conn, "pgcustody.backup"); {
	case err != nil:
		return err
	case !alone:
		return &Error{Code: exitRefused, What: "another backup of this database is being made", Do: "let it end"}
	}
	return nil
}

func (r *run) scope() jobs.Scope {
	return jobs.Scope{Tenant: jobs.SystemTenant, Actor: r.Actor, Purpose: "job " + Job}
}

// begin records that a run began. Whichever run has no end now has died: no other
// one is at work.
func (r *run) begin(ctx context.Context) error {
	r.id = uuid.New()
	return jobs.InContext(ctx, r.Runner, r.scope(), func(tx pgx.Tx) error {
		queries := db.New()
		// A restored database is told from this one by its incarnation.
		if _, err := queries.OpenIncarnation(ctx, tx); err != nil {
			return err
		}
		dead, err := queries.UnfinishedRunsOf(ctx, tx, Job)
		if err != nil {
			return err
		}
		died := "the process died"
		for _, id := range dead {
			if err := queries.FinishRun(ctx, tx, db.FinishRunParams{RunID: id, Status: "failed", Counts: json.RawMessage("{}"), Error: &died}); err != nil {
				return err
			}
		}
		_, err = queries.StartRun(ctx, tx, db.StartRunParams{Job: Job, RunID: &r.id})
		return err
	})
}

// end records how the run ended, although its own context may be over.
func (r *run) end(ctx context.Context, result *Result, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	status, counts, size := "succeeded", map[string]int64{}, int64(0)
	var message *string
	if failed != nil {
		code := "backup: " + jobs.Code(failed)
		status, message = "failed", &code
	}
	if result != nil {
		size = result.Data.Size + result.Keys.Size
		counts = map[string]int64{
			"data_bytes": result.Data.Size, "keys_bytes": result.Keys.Size, "pruned_data": int64(result.Pruned.Data),
			"pruned_keys": int64(result.Pruned.Keys), "pruned_uploads": int64(result.Pruned.Uploads),
		}
	}
	text, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	err = jobs.InContext(ctx, r.Runner, r.scope(), func(tx pgx.Tx) error {
		return db.New().FinishRun(ctx, tx, db.FinishRunParams{RunID: r.id, Status: status, Counts: text, Bytes: size, Error: message})
	})
	if err != nil {
		return fmt.Errorf("record the run: %w", err)
	}
	return nil
}

func (r *run) make(ctx context.Context) (*Result, error) {
	// No other backup is on its way: what is unfinished is a dead one's.
	uploads := 0
	for _, prefix := range []string{KeysPrefix, DataPrefix} {
		n, err := store.SweepAll(ctx, r.Store, prefix)
		if err != nil {
			return nil, err
		}
		uploads += n
	}
	if err := r.takeSnapshot(ctx); err != nil {
		return nil, err
	}
	m := r.manifest
	var err error
	// The whole database, definitions of the keys' tables among them; of the keys the rows alone, without those of contexts and tokens, which no dump has.
	m.Data, err = r.upload(ctx, "data", dataKey(m.ID), min(r.KeepData, firstLock), "--exclude-table-data=custody_keys.*", "--no-publications", "--no-subscriptions")
	if err != nil {
		return nil, err
	}
	m.Keys, err = r.upload(ctx, "keys", keysKey(m.ID), min(r.KeepKeys, firstLock), "--data-only", "--schema=custody_keys", "--exclude-table-data=custody_keys.context_keys", "--no-unlogged-table-data")
	if err != nil {
		return nil, err
	}
	// The snapshot holds back vacuum and archive; reading back needs it no more.
	if _, err := r.conn.Exec(ctx, "rollback"); err != nil {
		return nil, err
	}
	for _, object := range []struct {
		*Stored
		until time.Time
	}{{&m.Data, time.Now().Add(r.KeepData)}, {&m.Keys, m.StartedAt.Add(r.KeepKeys)}} {
		if err := r.prove(ctx, object.Stored, object.until); err != nil {
			return nil, err
		}
	}
	result, err := r.putManifest(ctx, time.Now().Add(r.KeepData))
	if err != nil {
		return nil, err
	}
	result.Pruned, err = Prune(ctx, r.Store)
	result.Pruned.Uploads = uploads
	if err != nil {
		return result, fmt.Errorf("backup %s is made, older ones could not be deleted: %w", m.ID, err)
	}
	return result, nil
}

// takeSnapshot fixes what the backup will hold, and notes what there is to know about it.
func (r *run) takeSnapshot(ctx context.Context) error {
	m := &Manifest{
		Format: manifestFormat, Version: manifestVersion, StartedAt: time.Now().UTC().Truncate(time.Second),
		Database: r.server.config.Database, Recipients: r.Recipients.Text, Actor: r.Actor, Login: r.server.config.User, Binary: binary(),
		Roles: []string{}, Extensions: []Extension{}, KEKs: []TenantKEKs{},
	}
	m.Host, _ = os.Hostname()
	random := make([]byte, 5)
	rand.Read(random) // never fails
	m.ID = m.StartedAt.Format("20060102T150405Z") + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(random))
	r.manifest = m

	for _, statement := range []string{
		"begin isolation level repeatable read read only",
		// It waits while pg_dump works, whatever the login's settings say.
		"set local idle_in_transaction_session_timeout = 0",
		"set local statement_timeout = 0",
	} {
		if _, err := r.conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	var major int
	err := r.conn.QueryRow(ctx, `
		select pg_catalog.pg_export_snapshot(), pg_catalog.clock_timestamp(), pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text,
		  case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_lsn() end::text,
		  (select c.system_identifier::text from pg_catalog.pg_control_system() c),
		  pg_catalog.current_setting('server_version'), pg_catalog.current_setting('server_version_num')::int / 10000`).
		Scan(&r.snapshot, &m.SnapshotAt, &m.Horizon, &m.LSN, &m.SystemIdentifier, &m.Postgres, &major)
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	m.SnapshotAt, m.PostgresMajor = m.SnapshotAt.UTC(), major
	if err := r.conn.QueryRow(ctx, `select pg_catalog.max(m.version) from custody_data.schema_migrations m`).Scan(&m.SchemaVersion); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if err := r.seesAll(ctx); err != nil {
		return err
	}
	// Owners of objects and roles in their grants: what pg_restore will name. What an extension
	// brought belongs to whoever makes the extension.
	rows, err := r.conn.Query(ctx, `
		select distinct pg_catalog.pg_get_userbyid(d.refobjid)::text as role from pg_catalog.pg_shdepend d
		where d.dbid = (select b.oid from pg_catalog.pg_database b where b.datname = pg_catalog.current_database())
		  and d.refclassid = 'pg_catalog.pg_authid'::regclass and d.deptype in ('o', 'a', 'r')
		  and d.classid <> 'pg_catalog.pg_extension'::regclass
		  and not exists (select from pg_catalog.pg_depend e where e.classid = d.classid and e.objid = d.objid and e.deptype = 'e')
		order by role`)
	if err == nil {
		m.Roles, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return fmt.Errorf("list roles: %w", err)
	}
	rows, err = r.conn.Query(ctx, `
		select e.extname::text, e.extversion, coalesce(bool_or(v.trusted), false) from pg_catalog.pg_extension e
		left join pg_catalog.pg_available_extension_versions v on v.name = e.extname and v.version = e.extversion
		where e.extname <> 'plpgsql' group by 1, 2 order by 1`)
	if err == nil {
		m.Extensions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Extension])
	}
	if err != nil {
		return fmt.Errorf("list extensions: %w", err)
	}
	rows, err = r.conn.Query(ctx, `
		select k.tenant_id::text, pg_catalog.array_agg(k.kek_version order by k.kek_version) from custody_keys.key_encryption_keys k
		where k.retired_at is null group by k.tenant_id order by 1`)
	if err == nil {
		m.KEKs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TenantKEKs])
	}
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	return nil
}

// seesAll refuses to go on where row-level security would hide rows from the login:
// pg_dump leaves them out without a word.
func (r *run) seesAll(ctx context.Context) error {
	var hidden []string
	err := r.conn.QueryRow(ctx, `
		with policies as (
		  select p.polrelid, p.polpermissive, pg_catalog.pg_get_expr(p.polqual, p.polrelid) as qual
		  from pg_catalog.pg_policy p
		  where p.polcmd in ('r', '*')
		    and exists (select from pg_catalog.unnest(p.polroles) r where r = 0 or pg_catalog.pg_has_role(r, 'usage'))
		)
		select array(
		  select c.oid::regclass::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		  where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
		    and pg_catalog.row_security_active(c.oid)
		    and c.oid is distinct from pg_catalog.to_regclass('custody_keys.context_keys') -- which is not for backups
		    and (not exists (select from policies p where p.polrelid = c.oid and p.polpermissive and p.qual = 'true')
		      or exists (select from policies p where p.polrelid = c.oid and not p.polpermissive and p.qual is distinct from 'true'))
		  order by 1 limit 5)`).Scan(&hidden)
	if err != nil {
		return fmt.Errorf("look at row-level security: %w", err)
	}
	if len(hidden) > 0 {
		return &Error{Code: exitPermission, What: "row-level security hides rows from login " + r.server.config.User, Object: strings.Join(hidden, ", "),
			Do: "give custody_backup a policy there: for select using (true)"}
	}
	return nil
}

// binary says which build this is.
func binary() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Path + " " + info.Main.Version
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" || setting.Key == "vcs.modified" && setting.Value == "true" {
			text += " " + strings.TrimPrefix(setting.Key, "vcs.") + "=" + setting.Value
		}
	}
	return text
}

// upload streams a dump of the snapshot, encrypted, into a locked object. An error of
// pg_dump reaches the store as an error of the stream, which it gives up then:
// half a dump never becomes an object.
func (r *run) upload(ctx context.Context, what, key string, lock time.Duration, args ...string) (Stored, error) {
	callers := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, said, err := r.server.program(ctx, "pg_dump", append([]string{
		"--format=custom", "--enable-row-security", "--snapshot=" + r.snapshot, "--lock-wait-timeout=300000",
	}, args...)...)
	if err != nil {
		return Stored{}, err
	}
	plain, err := cmd.StdoutPipe()
	if err != nil {
		return Stored{}, err
	}
	if err := cmd.Start(); err != nil {
		return Stored{}, &Error{Code: 1, What: "pg_dump does not start", Err: err}
	}

	reader, writer := io.Pipe()
	sum := sha256.New()
	size := &counter{tell: func(n int64) { r.progress(what+" bytes stored", n, 0) }}
	dumped := make(chan error, 1)
	go func() {
		err := func() error {
			cipher, err := age.Encrypt(io.MultiWriter(writer, sum, size), r.Recipients.Keys...)
			if err == nil {
				_, err = io.Copy(cipher, plain)
			}
			if err != nil {
				cancel() // so that pg_dump ends, too
			}
			if ended := cmd.Wait(); err == nil {
				err = said.failure(ended)
			}
			if err == nil {
				err = cipher.Close()
			}
			return err
		}()
		writer.CloseWithError(err)
		dumped <- err
	}()
	put, err := r.Store.Put(ctx, key, reader, store.PutOptions{RetainUntil: time.Now().Add(lock), IfNoneMatch: true})
	_ = reader.CloseWithError(errGivenUp)
	failed := <-dumped
	if callers.Err() != nil {
		return Stored{}, callers.Err() // which is what killed pg_dump
	}
	if failed != nil && !errors.Is(failed, errGivenUp) {
		return Stored{}, fmt.Errorf("dump %s: %w", what, failed)
	}
	if err != nil {
		return Stored{}, err
	}
	return Stored{Key: key, ObjectVersion: put.Version, Size: size.n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

var errGivenUp = errors.New("the store took no more")

func (r *run) progress(unit string, done, total int64) {
	if r.OnProgress != nil {
		r.OnProgress(jobs.Progress{Job: Job, Unit: unit, Done: done, Total: total})
	}
}

// prove reads an object back, compares it, and locks it for as long as it is kept.
func (r *run) prove(ctx context.Context, object *Stored, until time.Time) error {
	if err := compare(ctx, r.Store, *object, io.Discard); err != nil {
		return err
	}
	info, err := r.Store.Head(ctx, object.Key, object.ObjectVersion)
	if err == nil && info.RetainUntil.Before(until.Truncate(time.Second)) {
		if err = r.Store.Extend(ctx, object.Key, object.ObjectVersion, until); err == nil {
			info, err = r.Store.Head(ctx, object.Key, object.ObjectVersion)
		}
	}
	if err != nil {
		return err
	}
	if !info.LockedUntil(until) {
		return &store.Error{Op: "lock", Object: r.Store.URL() + "/" + object.Key, Kind: store.ErrNotLocked,
			Hint: "the store reports no COMPLIANCE lock until " + until.Format(time.RFC3339) + ": pgcustody store check tries it"}
	}
	object.LockedUntil = info.RetainUntil.UTC()
	return nil
}

// compare reads an object of a backup, gives it on to to, and holds it against what
// the manifest says.
func compare(ctx context.Context, s store.Store, object Stored, to io.Writer) error {
	stored, err := s.Get(ctx, object.Key, object.ObjectVersion)
	if err != nil {
		return err
	}
	defer stored.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, to), stored)
	got := hex.EncodeToString(sum.Sum(nil))
	// The store's client compares a sum of its own, and speaks first.
	if err != nil && (n != object.Size || got == object.SHA256) {
		return err
	}
	if n != object.Size || got != object.SHA256 {
		return &Error{Code: exitCheck, What: "object is not the one of the manifest", Object: s.URL() + "/" + object.Key,
			Do: fmt.Sprintf("it has %d bytes and SHA-256 %s, not %d and %s: take another backup", n, got, object.Size, object.SHA256)}
	}
	return nil
}

func (r *run) putManifest(ctx context.Context, until time.Time) (*Result, error) {
	m := r.manifest
	m.EndedAt = time.Now().UTC()
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	sum := sha256.Sum256(text)
	key := manifestKey(m.ID)
	put, err := r.Store.Put(ctx, key, bytes.NewReader(text), store.PutOptions{RetainUntil: until, ContentType: "application/json", IfNoneMatch: true})
	if err != nil {
		return nil, err
	}
	digest := hex.EncodeToString(sum[:])
	err = r.prove(ctx, &Stored{Key: key, ObjectVersion: put.Version, Size: int64(len(text)), SHA256: digest}, until)
	return &Result{Manifest: m, ManifestSHA256: digest}, err
}
