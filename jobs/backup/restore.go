package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/store"
	"pgcustody/sql"
)

// RestoreConfig says what is restored, and into what.
type RestoreConfig struct {
	Store store.Store
	// Backup is an id, or latest.
	Backup string
	// ManifestSHA256 is what its manifest must have, as backup printed it; empty
	// takes the store's word.
	ManifestSHA256 string
	Identities     []age.Identity
	// Into is the address of the database, which is made where it is missing, as a
	// superuser or as the login for migrations.
	Into  string
	Actor string
	PGBin string
	// WithoutKeys leaves the keys out: nothing that was sealed can be opened.
	WithoutKeys bool
	// ReleaseReason releases holds that the backup brought back on people who have
	// been erased since. It is free text that names nobody.
	ReleaseReason string
	// SkipCertificates are keys of objects that are no certificates.
	SkipCertificates []string
	// Sample verifies only so many segments of the archive; 0 all.
	Sample     int
	Log        *slog.Logger
	OnProgress func(jobs.Progress)
	// OnStep may be nil. It is told what comes next.
	OnStep func(step string)
}

// Restored is what a restore did.
type Restored struct {
	Backup      string    `json:"backup"`
	SnapshotAt  time.Time `json:"snapshot_at"`
	Database    string    `json:"database"`
	Keys        bool      `json:"keys"`
	Resumed     bool      `json:"resumed"`
	Incarnation uuid.UUID `json:"incarnation"`
	Erasures    Replayed  `json:"erasures"`
	Archive     struct {
		Segments int   `json:"segments"`
		Events   int64 `json:"events"`
		// Newer are objects that were archived after the snapshot, by the database that
		// this one was restored from.
		Newer int `json:"newer"`
	} `json:"archive"`
	// Findings are what custody_check.findings says of the new database.
	Findings []string `json:"findings"`
	// Roles may connect now.
	Roles []string `json:"roles"`
}

// Replayed is what became of the certificates in the store.
type Replayed struct {
	Certificates int `json:"certificates"`
	Replayed     int `json:"replayed"`
	Standing     int `json:"standing"` // the backup knew of them
	Unknown      int `json:"unknown"`  // the backup is older than the person, or the tenant
	Exports      int `json:"exports_deleted"`
}

type restore struct {
	*RestoreConfig
	*target
	listed *Listed
	pool   *pgxpool.Pool
	result *Restored

	started time.Time
}

// Restore brings a backup back into a database that is empty, and lets nobody in
// before all erasures that the store knows of have been repeated and every proof
// has been looked at. It may be killed anywhere and run again.
func Restore(ctx context.Context, config RestoreConfig) (_ *Restored, err error) {
	server, err := parseServer("--into", config.Into, config.PGBin)
	if err != nil {
		return nil, err
	}
	r := &restore{RestoreConfig: &config, started: time.Now()}
	if r.listed, err = find(ctx, config.Store, config.Backup); err != nil {
		return nil, err
	}
	r.result = &Restored{Backup: r.listed.ID, SnapshotAt: r.listed.SnapshotAt, Database: server.config.Database, Keys: !config.WithoutKeys, Findings: []string{}}
	if err := r.readable(ctx); err != nil {
		return nil, err
	}
	if _, _, err := server.program(ctx, "pg_restore"); err != nil {
		return nil, err
	}
	if r.target, err = openTarget(ctx, server); err != nil {
		return nil, err
	}
	defer r.close(ctx)
	if err := r.fits(ctx, r.listed.Manifest); err != nil {
		return nil, err
	}
	unfinished, err := r.state(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.load(ctx, unfinished); err != nil {
		return nil, err
	}
	if err := r.finish(ctx); err != nil {
		return nil, err
	}
	return r.result, nil
}

func (r *restore) step(text string) {
	if r.OnStep != nil {
		r.OnStep(text)
	}
}

// readable reads and decrypts everything once, so that a restore does not begin what
// it cannot end.
func (r *restore) readable(ctx context.Context) error {
	if r.ManifestSHA256 != "" {
		if err := compareManifest(ctx, r.Store, r.listed, r.ManifestSHA256); err != nil {
			return err
		}
	}
	if !r.WithoutKeys && !r.listed.HasKeys {
		return &Error{Code: exitCheck, What: "the keys of backup " + r.listed.ID + " are gone", Object: "they were kept until " + r.listed.Keys.LockedUntil.Format(time.RFC3339),
			Do: "restore a newer backup; or with --without-keys the data alone, of which no sealed value can be opened by anybody"}
	}
	for _, object := range r.objects() {
		r.step("check " + object.Key)
		if err := r.decrypt(ctx, object, io.Discard, true); err != nil {
			return err
		}
	}
	return nil
}

func compareManifest(ctx context.Context, s store.Store, listed *Listed, want string) error {
	object := Stored{Key: manifestKey(listed.ID), ObjectVersion: listed.ManifestVersion, SHA256: strings.ToLower(want)}
	info, err := s.Head(ctx, object.Key, object.ObjectVersion)
	if err != nil {
		return err
	}
	object.Size = info.Size
	return compare(ctx, s, object, io.Discard)
}

func (r *restore) objects() []Stored {
	if r.WithoutKeys {
		return []Stored{r.listed.Data}
	}
	return []Stored{r.listed.Data, r.listed.Keys}
}

// decrypt streams an object of the backup to to. Unless it is wanted whole, it may
// stop when to takes no more.
func (r *restore) decrypt(ctx context.Context, object Stored, to io.Writer, whole bool) error {
	reader, writer := io.Pipe()
	read := make(chan error, 1)
	go func() {
		count := &counter{tell: func(n int64) {
			if r.OnProgress != nil {
				r.OnProgress(jobs.Progress{Job: "restore", Unit: "bytes", Done: n, Total: object.Size})
			}
		}}
		err := compare(ctx, r.Store, object, io.MultiWriter(writer, count))
		writer.CloseWithError(err)
		read <- err
	}()
	plain, err := age.Decrypt(reader, r.Identities...)
	if err == nil {
		_, err = io.Copy(to, plain)
	}
	damaged := err
	if err != nil && whole {
		// What follows says whether the object is another one.
		_, _ = io.Copy(io.Discard, reader)
	}
	_ = reader.CloseWithError(errGivenUp)
	failed := <-read
	var nobody *age.NoIdentityMatchError
	switch {
	case failed != nil && !errors.Is(failed, errGivenUp):
		return failed
	case errors.As(damaged, &nobody):
		return &Error{Code: exitRefused, What: "the identity opens nothing of backup " + r.listed.ID, Object: "it was encrypted to " + strings.Join(r.listed.Recipients, ", "),
			Do: "give the identity of one of them; nothing was changed"}
	case damaged == nil:
		return nil
	case errors.Is(damaged, syscall.EPIPE) && !whole:
		return nil
	}
	return &Error{Code: exitCheck, What: "object cannot be decrypted", Object: r.Store.URL() + "/" + object.Key, Do: "take another backup", Err: damaged}
}

// load brings data and keys back, in a database that is closed.
func (r *restore) load(ctx context.Context, unfinished *mark) error {
	now := mark{Restore: r.listed.ID, Phase: phaseLoading, Keys: !r.WithoutKeys}
	loaded := now
	loaded.Phase = phaseLoaded
	if unfinished != nil && *unfinished == loaded {
		r.result.Resumed = true
		return r.shut(ctx, loaded)
	}
	if err := r.shut(ctx, now); err != nil {
		return err
	}
	if unfinished != nil {
		if err := r.empty(ctx); err != nil {
			return err
		}
	}
	if err := r.makeRoles(ctx); err != nil {
		return err
	}
	// Keys come while row-level security and triggers, which are last, are not there yet.
	for _, part := range []struct {
		step   string
		object Stored
		args   []string
	}{
		{"restore data", r.listed.Data, []string{"--section=pre-data", "--section=data"}},
		{"restore keys", r.listed.Keys, []string{"--data-only"}},
		{"restore indexes, guards and policies", r.listed.Data, []string{"--section=post-data"}},
	} {
		if r.WithoutKeys && part.object.Key == r.listed.Keys.Key {
			continue
		}
		r.step(part.step)
		if err := r.pgRestore(ctx, part.object, part.args...); err != nil {
			return fmt.Errorf("%s: %w", part.step, err)
		}
	}
	return r.comment(ctx, r.conn, loaded)
}

// pgRestore feeds an object of the backup to pg_restore.
func (r *restore) pgRestore(ctx context.Context, object Stored, args ...string) error {
	callers := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, said, err := r.server.program(ctx, "pg_restore", append([]string{"--format=custom", "--exit-on-error"}, args...)...)
	if err != nil {
		return err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return &Error{Code: 1, What: "pg_restore does not start", Err: err}
	}
	failed := r.decrypt(ctx, object, stdin, false)
	if failed != nil {
		cancel() // or it would take what it got for all
	}
	_ = stdin.Close()
	ended := cmd.Wait()
	if callers.Err() != nil {
		return callers.Err()
	}
	if failed != nil {
		return failed
	}
	return said.failure(ended)
}

// finish repeats the erasures, looks at the proofs, and opens the database.
func (r *restore) finish(ctx context.Context) (err error) {
	r.step("migrate")
	if _, err := sql.Up(ctx, sql.Config{URL: r.Into, Logger: r.Log}); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(r.Into)
	if err != nil {
		return err
	}
	config.MaxConns = 4
	config.ConnConfig.RuntimeParams["application_name"] = "pgcustody restore"
	if r.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	defer r.pool.Close()

	r.step("open incarnation")
	if err := jobs.InContext(ctx, r.pool, r.scope(jobs.SystemTenant), func(tx pgx.Tx) (err error) {
		queries := db.New()
		if r.result.Incarnation, err = queries.OpenIncarnation(ctx, tx); err != nil || r.system != r.listed.SystemIdentifier {
			return err
		}
		// Beside the database that was backed up, or in its place: not the same one.
		r.result.Incarnation, err = queries.NewIncarnation(ctx, tx)
		return err
	}); err != nil {
		return fmt.Errorf("open incarnation: %w", err)
	}
	r.step("replay erasures")
	if err := r.replay(ctx); err != nil {
		return err
	}
	r.step("verify archive")
	if err := r.verifyArchive(ctx); err != nil {
		return err
	}
	if err := r.pool.QueryRow(ctx, `
		select array(select pg_catalog.concat_ws(' ', f.id, f.object, f.detail) from custody_check.findings f order by 1)`).Scan(&r.result.Findings); err != nil {
		return fmt.Errorf("look at guards: %w", err)
	}
	if err := r.record(ctx); err != nil {
		return err
	}
	r.step("open database")
	if err := r.open(ctx, r.listed.ID); err != nil {
		return err
	}
	r.result.Roles = groups
	return nil
}

func (r *restore) scope(tenant string) jobs.Scope {
	return jobs.Scope{Tenant: tenant, Actor: r.Actor, Purpose: "restore"}
}

const certificatePrefix = "erasure-certificates/"

var certificateName = regexp.MustCompile(`^erasure-certificates/([a-z0-9][a-z0-9_-]{0,62})/([0-9a-f-]{36})\.json$`)

// replay repeats every erasure that has a certificate in the store. Of each key the
// first version counts, under its lock, whatever somebody put on top.
func (r *restore) replay(ctx context.Context) error {
	byKey, keys, err := versionsOf(r.Store.Versions(ctx, certificatePrefix))
	if err != nil {
		return err
	}
	// What cannot be told apart from an erasure keeps the database closed: a skipped
	// certificate is a person who comes back.
	stop := func(key, what string) error {
		return &Error{Code: exitCheck, What: "the database stays closed: " + what, Object: r.Store.URL() + "/" + key,
			Do: "look at it; if it is no certificate, run again with --skip-certificate " + key}
	}
	held := []string{}
	for i, key := range keys {
		if r.OnProgress != nil {
			r.OnProgress(jobs.Progress{Job: "replay", Unit: "certificates", Done: int64(i), Total: int64(len(keys))})
		}
		if slices.Contains(r.SkipCertificates, key) {
			continue
		}
		name := certificateName.FindStringSubmatch(key)
		if name == nil {
			return stop(key, "an object among the certificates is none")
		}
		tenant, text := name[1], name[2]
		request, err := uuid.Parse(text)
		if err != nil {
			return stop(key, "an object among the certificates is none")
		}
		first := byKey[key][0]
		info, err := r.Store.Head(ctx, key, first.Version)
		if err != nil {
			return err
		}
		if info.RetainMode != store.ModeCompliance {
			return stop(key, "a certificate is not under lock, so anybody may have put it there")
		}
		certificate, err := read(ctx, r.Store, key, first.Version)
		if err != nil {
			return err
		}
		var said struct {
			Request uuid.UUID `json:"request_id"`
		}
		if json.Unmarshal(certificate, &said) != nil || said.Request != request {
			return stop(key, "a certificate cannot be read, or is another's")
		}
		r.result.Erasures.Certificates++
		waits, err := r.replayOne(ctx, tenant, request, key, certificate)
		switch state := refusal(err); {
		case state == "PC023":
			return stop(key, "a certificate was refused")
		case state == "PC032":
			held = append(held, text)
		case err != nil:
			return fmt.Errorf("replay erasure %s of tenant %s: %w", request, tenant, err)
		case waits:
			held = append(held, text)
		}
	}
	if len(held) > 0 {
		what := held[:min(len(held), 5)]
		return &Error{Code: exitCheck, What: fmt.Sprintf("the database stays closed: %d people have been erased whom a legal hold keeps that the backup brought back", len(held)),
			Object: "requests " + strings.Join(what, ", "),
			Do:     "the hold was released before the erasure: a privacy officer runs this again with --release-holds-reason; a hold on the whole tenant they release in the database first (custody.release_hold)"}
	}
	return nil
}

func refusal(err error) string {
	var refused *db.Error
	if errors.As(db.FromPg(err), &refused) {
		return refused.Code
	}
	return ""
}

func read(ctx context.Context, s store.Store, key, version string) ([]byte, error) {
	object, err := s.Get(ctx, key, version)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	return io.ReadAll(io.LimitReader(object, maxManifest))
}

// replayOne repeats one erasure, looks for what it must not leave, and deletes the
// exports that the backup knows of. Waits says that a hold is in its way.
func (r *restore) replayOne(ctx context.Context, tenant string, request uuid.UUID, key string, certificate []byte) (waits bool, err error) {
	var outcome struct {
		Replayed, Standing, Unknown int
		Held                        []string
	}
	var exports []uuid.UUID
	err = jobs.InContext(ctx, r.pool, r.scope(tenant), func(tx pgx.Tx) error {
		queries := db.New()
		var reason *string
		if r.ReleaseReason != "" {
			reason = &r.ReleaseReason
			// A privacy officer's right, for this transaction alone.
			back, err := r.become(ctx, tx, "custody_privacy")
			if err != nil {
				return err
			}
			defer func() { _ = back() }()
		}
		text, err := queries.ReplayErasures(ctx, tx, db.ReplayErasuresParams{Certificates: append(append([]byte{'['}, certificate...), ']'), ReleaseReason: reason})
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &outcome); err != nil {
			return err
		}
		if outcome.Replayed+outcome.Standing == 0 {
			return nil
		}
		found, err := queries.VerifyErasure(ctx, tx, request)
		if err != nil {
			return err
		}
		var verified struct {
			Clean    bool            `json:"clean"`
			Findings json.RawMessage `json:"findings"`
		}
		if err := json.Unmarshal(found, &verified); err != nil {
			return err
		}
		if !verified.Clean {
			return &Error{Code: exitCheck, What: "the database stays closed: an erasure left something", Object: fmt.Sprintf("request %s of tenant %s: %s", request, tenant, verified.Findings),
				Do: "remove it at its source, then run again"}
		}
		if err := queries.MarkCertificateStored(ctx, tx, db.MarkCertificateStoredParams{RequestID: request, ObjectKey: key}); err != nil {
			return err
		}
		exports, err = queries.ExportsOfErased(ctx, tx, request)
		return err
	})
	if refusal(err) == "PC002" { // a tenant that the backup is older than
		r.result.Erasures.Unknown++
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, export := range exports {
		n, err := r.Store.Delete(ctx, jobs.ExportKey(tenant, export))
		r.result.Erasures.Exports += n
		if err != nil {
			return false, fmt.Errorf("delete exports: %w", err)
		}
	}
	r.result.Erasures.Replayed += outcome.Replayed
	r.result.Erasures.Standing += outcome.Standing
	r.result.Erasures.Unknown += outcome.Unknown
	return len(outcome.Held) > 0, nil
}

// become gives the login a group role until back is called, or the transaction ends
// without it. Superusers have them all.
func (r *restore) become(ctx context.Context, tx pgx.Tx, role string) (back func() error, err error) {
	var member bool
	if err := tx.QueryRow(ctx, `select pg_catalog.pg_has_role($1::name, 'member')`, role).Scan(&member); err != nil {
		return nil, err
	}
	if member {
		return func() error { return nil }, nil
	}
	if _, err := tx.Exec(ctx, "grant "+role+" to session_user"); err != nil {
		return nil, err
	}
	return func() error {
		_, err := tx.Exec(ctx, "revoke "+role+" from session_user")
		return err
	}, nil
}

// verifyArchive holds the archive in the store against the record that was restored.
// What was archived after the snapshot is on no record here.
func (r *restore) verifyArchive(ctx context.Context) error {
	deps := jobs.Deps{Pool: r.pool, Store: r.Store, Log: r.Log, Actor: r.Actor}
	checks, err := jobs.VerifyArchive(ctx, deps, nil, r.Sample, func(done, total int) {
		if r.OnProgress != nil {
			r.OnProgress(jobs.Progress{Job: "archive verify", Unit: "segments", Done: int64(done), Total: int64(total)})
		}
	})
	if err != nil {
		return err
	}
	for _, c := range checks {
		switch {
		case c.Finding != "":
			return &Error{Code: exitCheck, What: "the database stays closed: the archive does not hold", Object: c.Object + ": " + c.Finding,
				Do: "find out who changed it; to open the database all the same, grant connect on it to the group roles"}
		case c.Segment == "":
			r.result.Archive.Newer++
		default:
			r.result.Archive.Segments++
			r.result.Archive.Events += c.Events
		}
	}
	return nil
}

// record leaves a run in the new database that says what was done.
func (r *restore) record(ctx context.Context) error {
	counts, err := json.Marshal(map[string]int{
		"certificates": r.result.Erasures.Certificates, "replayed": r.result.Erasures.Replayed, "standing": r.result.Erasures.Standing,
		"unknown": r.result.Erasures.Unknown, "exports_deleted": r.result.Erasures.Exports,
		"segments_verified": r.result.Archive.Segments, "newer_objects": r.result.Archive.Newer,
		"seconds": int(time.Since(r.started).Seconds()),
	})
	if err != nil {
		return err
	}
	err = jobs.InContext(ctx, r.pool, r.scope(jobs.SystemTenant), func(tx pgx.Tx) error {
		queries := db.New()
		id, err := queries.StartRun(ctx, tx, db.StartRunParams{Job: "restore"})
		if err != nil {
			return err
		}
		return queries.FinishRun(ctx, tx, db.FinishRunParams{RunID: id, Status: "succeeded", Counts: counts, Bytes: r.listed.Data.Size + r.listed.Keys.Size})
	})
	if err != nil {
		return fmt.Errorf("record the restore: %w", err)
	}
	return nil
}
