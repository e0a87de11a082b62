package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pgcustody/jobs"
)

// chainedTrail is the usual way to make a trail tamper-evident: each row has the hash
// of the row before it, which a trigger reads under a lock that is held to the end of
// the transaction. It does without partitions and policies, and is given the cheapest
// bytes of a row that there are.
var chainedTrail = []string{
	"create table bench.chained_logs (like custody_data.audit_logs including defaults including indexes, place bigint not null, prev_hash bytea, hash bytea not null)",
	"create unique index on bench.chained_logs (place)",
	`create function bench.tg_chain() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(42);
  select c.place + 1, c.hash into new.place, new.prev_hash from bench.chained_logs c order by c.place desc limit 1;
  new.place := coalesce(new.place, 1);
  new.hash := sha256(coalesce(new.prev_hash, '') || convert_to(new::text, 'UTF8'));
  return new;
end $$`,
	"create trigger chain before insert on bench.chained_logs for each row execute function bench.tg_chain()",
}

// measureLedger measures what the ledger costs those who append, and how fast one
// connection seals.
func measureLedger(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "ledger")
	if err != nil {
		return err
	}
	defer done()
	if err := d.load(ctx, people("actor-", 64), partitions("now()", "now()"), "analyze custody_data.identities"); err != nil {
		return err
	}
	if err := d.load(ctx, append(bareTrail, chainedTrail...)...); err != nil {
		return err
	}
	s, err := d.newSealer(ctx)
	if err != nil {
		return err
	}
	defer s.close(context.WithoutCancel(ctx))

	transaction := func(table, work string) string {
		return "\\set r random(1, 1000000000)\nbegin;\nselect custody.set_context('" + tenant + "', 'actor-' || (:client_id + 1)::text, 'care');\n" +
			"insert into " + table + " (tenant_id, log_entry_id, occurred_at, actor_id, action, resource_type, resource_id, result, purpose, metadata)\n" +
			"values ('" + tenant + "', gen_random_uuid(), clock_timestamp(), md5('actor-' || (:client_id + 1)::text)::uuid, 'phi.access', 'health_record', 'record-' || :r::text, 'success', 'care', '{\"count\":3,\"source\":\"web\"}');\n" +
			work + "commit;\n"
	}
	scripts := func(work string) []script {
		return []script{
			{name: "ledger", login: appLogin, text: transaction("custody_data.audit_logs", work), beside: s.run},
			{name: "bare", login: appLogin, text: transaction("bench.audit_logs", work)},
			{name: "chain", login: appLogin, text: transaction("bench.chained_logs", work)},
		}
	}
	rounds, each, crowd := 5, 4*time.Second, 64
	if b.quick {
		rounds, each, crowd = 1, time.Second, 16
	}
	// Waiting for the disk is the same for the ledger and the bare table, and hides what differs. The chain waits for it
	// under its lock.
	const hurried = "-c synchronous_commit=off"
	d.options = hurried
	if _, err := d.race(ctx, scripts(""), 8, 1, time.Second); err != nil { // warm
		return err
	}
	for _, m := range []struct {
		clients         int
		work, label     string
		waits           bool // for the disk
		toBare, toChain float64
		rounds          int
		span            time.Duration
	}{
		{8, "", "", false, 0.90, 3.5, rounds, each},
		// Connecting counts as part of the time.
		{crowd, "", "", false, 0.85, 6, rounds, 2 * each},
		{8, "select pg_sleep(0.005);\n", " with 5 ms of work", false, 0, 6, max(rounds/2, 1), each},
		{crowd, "select pg_sleep(0.005);\n", " with 5 ms of work", false, 0, 30, max(rounds/2, 1), 2 * each},
		{8, "", ", commit waits for the disk", true, 0, 3.5, max(rounds/2, 1), each},
		{crowd, "", ", commit waits for the disk", true, 0, 6, max(rounds/2, 1), 2 * each},
	} {
		hurry := ", synchronous_commit off"
		if d.options = hurried; m.waits {
			d.options, hurry = "", ""
		}
		s.forget()
		tps, err := d.race(ctx, scripts(m.work), m.clients, m.rounds, m.span)
		if err != nil {
			return err
		}
		r := median(ratios(tps[0], tps[1]))
		bare := row{figure: fmt.Sprintf("insert with the ledger on and sealed each second, %d clients%s", m.clients, m.label), ratio: fmt.Sprintf("%.2f", r),
			ours: perSecond(median(tps[0])), bare: perSecond(median(tps[1])),
			note: fmt.Sprintf("one row under RLS in a transaction with set_context, against a bare table of the same columns, defaults, indexes and partitions; median of %d rounds of %s%s", m.rounds, m.span, hurry)}
		if m.toBare > 0 {
			bare.target, bare.verdict = fmt.Sprintf("≥ %.2f", m.toBare), atLeast(r, m.toBare)
		}
		b.add(bare)
		r = median(ratios(tps[0], tps[2]))
		b.add(row{figure: "… against a hash chain", target: fmt.Sprintf("≥ %.1f", m.toChain), ratio: fmt.Sprintf("%.1f", r), verdict: atLeast(r, m.toChain),
			ours: perSecond(median(tps[0])), bare: perSecond(median(tps[2])),
			note: fmt.Sprintf("whose BEFORE trigger reads the last hash under an advisory lock; the bare table against it: %.1f, which is the most that there is to win", median(ratios(tps[1], tps[2])))})
		if m.clients == crowd && m.work == "" && !m.waits {
			age := quantile(s.ages, 1)
			b.add(row{figure: "… age of the oldest event without a leaf at the end of a round", target: "< 2 s", ratio: fmt.Sprintf("%.2f s", age), verdict: atMost(age, 2),
				ours: fmt.Sprintf("%.0f events", quantile(s.waiting, 1)),
				note: fmt.Sprintf("the greatest of %d rounds; sealing comes by each second, its turn took %s at the median and %s at most", m.rounds, ms(median(s.turns)), ms(quantile(s.turns, 1)))})
		}
	}
	d.options = hurried
	if err := d.sealBacklogs(ctx, s, scripts("")[0], rounds, 2*each); err != nil {
		return err
	}
	return d.sealersIndex(ctx)
}

// sealersIndex is what the trail's index takes that the sealer walks by, which is
// none of the ledger's tables, where the events came one by one.
func (d *database) sealersIndex(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var bytes, events float64
	if err := conn.QueryRow(ctx, `select sum(pg_relation_size(i.relid)), (select count(*) from custody_data.audit_logs)
		from pg_partition_tree('custody_data.audit_logs_xid_idx') i`).Scan(&bytes, &events); err != nil {
		return err
	}
	d.add(row{figure: "the trail's own index on (xid, log_entry_id), bytes an event", ratio: fmt.Sprintf("%.1f", bytes/events),
		note: fmt.Sprintf("%.0f events as the clients above inserted them; the bare table has it too, and the archive walks by it", events)})
	return nil
}

// sealBacklogs lets events pile up, and seals them by one connection.
func (d *database) sealBacklogs(ctx context.Context, s *sealer, inserts script, rounds int, each time.Duration) error {
	inserts.beside = nil
	var appended, sealed []float64
	var events int64
	for range rounds {
		tps, err := d.race(ctx, []script{inserts}, 8, 1, each)
		if err != nil {
			return err
		}
		started := time.Now()
		if events, err = s.seal(ctx); err != nil {
			return err
		}
		sealed = append(sealed, float64(events)/time.Since(started).Seconds())
		appended = append(appended, tps[0][0])
	}
	limits, err := d.leafCosts(ctx, events)
	if err != nil {
		return err
	}
	r := median(ratios(sealed, appended))
	d.add(row{figure: "sealing by one connection, against inserts of 8 clients", target: "≥ 4.0", ratio: fmt.Sprintf("%.1f", r), verdict: atLeast(r, 4),
		ours: perSecond(median(sealed)), bare: perSecond(median(appended)),
		note: fmt.Sprintf("what piled up in %s, in batches of %d; median of %d rounds: %s an event, of which %s", each, sealBatch, rounds, us(1/median(sealed)), limits)})
	return nil
}

// leafCosts says what the leaves of the last events cost at the least, on one core:
// to read the rows, to write their entries, and to hash those.
func (d *database) leafCosts(ctx context.Context, events int64) (string, error) {
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "set max_parallel_workers_per_gather = 0; set jit = off; set enable_sort = off; set enable_seqscan = off"); err != nil {
		return "", err
	}
	took, err := alternate(3, 3, func(v, _ int) (time.Duration, error) {
		started := time.Now()
		_, err := conn.Exec(ctx, "select count("+[]string{"e.metadata", "custody.audit_entry(e)", "custody_data.leaf_hash(e)"}[v]+
			") from (select a.* from custody_data.audit_logs a order by a.xid desc, a.log_entry_id desc limit $1) e", events)
		return time.Since(started), err
	})
	if err != nil {
		return "", err
	}
	read, entry, hash := median(took[0])/float64(events), median(took[1])/float64(events), median(took[2])/float64(events)
	return fmt.Sprintf("reading the row %s, its entry %s, the hash %s", us(read), us(entry-read), us(hash-entry)), nil
}

// measureProofs measures a proof, the bytes that the ledger adds, and verification,
// where there are many events.
func measureProofs(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "ledger_many")
	if err != nil {
		return err
	}
	defer done()
	const loaders = 4
	events, share, days, proofs := 10_000_000, 50_000, 80, 2000
	if b.quick {
		events, share, days, proofs = 20_000, 1000, 3, 20
	}
	// Days of events, in transactions of a share each, several at a time. Indexes that neither sealing nor a
	// proof uses are left out, which is what takes the time.
	if err := d.load(ctx, people("actor-", 64), partitions(fmt.Sprintf("now() - interval '%d days'", days), "now()"),
		"drop index custody_data.audit_logs_occurred_at_idx, custody_data.audit_logs_subject_id_idx, custody_data.audit_logs_actor_id_idx"); err != nil {
		return err
	}
	s, err := d.newSealer(ctx)
	if err != nil {
		return err
	}
	defer s.close(context.WithoutCancel(ctx))
	started := time.Now()
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(loaders)
	for from := 0; from < events; from += share {
		conn, err := pgx.Connect(loading, d.stack.SuperURL(d.name))
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		// Transactions are numbered as time goes, however long each takes.
		if _, err := conn.Exec(loading, "begin; select pg_current_xact_id()"); err != nil {
			return errors.Join(err, conn.Close(ctx), group.Wait())
		}
		group.Go(func() error {
			defer conn.Close(context.WithoutCancel(loading))
			_, err := conn.Exec(loading, fmt.Sprintf(`insert into custody_data.audit_logs
				(tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, resource_type, resource_id, result, purpose, metadata)
				select '%s', custody_data.new_entry_id(), t.at, t.at + interval '1 ms', md5('actor-' || n %% 64 + 1)::uuid,
				  'phi.access', 'health_record', 'record-' || n, 'success', 'care', '{"count":3,"source":"web"}'
				from generate_series(%d, %d) n cross join lateral (select now() - interval '%d days' * (1 - n / %d.0) as at) t;
				commit`, tenant, from+1, from+share, days, events))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.load(ctx, "vacuum (analyze) custody_data.audit_logs"); err != nil {
		return err
	}
	d.log.Info("events loaded", "count", events, "duration", time.Since(started).Round(time.Second))

	started = time.Now()
	sealed, err := s.seal(ctx)
	if err != nil {
		return err
	}
	if sealed < int64(events) {
		return fmt.Errorf("%d events sealed, expected %d", sealed, events)
	}
	took := time.Since(started)
	d.add(row{figure: fmt.Sprintf("sealing %d events that were loaded at once", events), ours: perSecond(float64(sealed) / took.Seconds()),
		note: fmt.Sprintf("one connection, batches of %d, %s", sealBatch, took.Round(time.Second/10))})
	if err := d.ledgerStorage(ctx, sealed); err != nil {
		return err
	}
	a, err := d.newAuditor(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	if _, _, _, err := a.run(ctx, nil, "anchor"); err != nil {
		return err
	}
	if err := d.proofs(ctx, sealed, proofs); err != nil {
		return err
	}
	return d.ledgerVerification(ctx, a)
}

// proofs proves events at random under the newest checkpoint.
func (d *database) proofs(ctx context.Context, sealed int64, count int) error {
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	type event struct {
		ID string
		At time.Time
	}
	rows, err := super.Query(ctx, "select a.log_entry_id::text, a.occurred_at from custody_data.audit_logs a where a.tenant_id = $1 order by random() limit $2", tenant, count)
	if err != nil {
		return err
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	if err != nil {
		return err
	}
	app, err := pgx.Connect(ctx, d.stack.URL(appLogin, d.name))
	if err != nil {
		return err
	}
	defer app.Close(context.WithoutCancel(ctx))
	took, err := alternate(len(events), 2, func(v, i int) (time.Duration, error) {
		if v == 0 {
			return d.callInContext(ctx, app, "select custody.inclusion_proof($1)", events[i].ID)
		}
		return d.callInContext(ctx, app, "select custody.inclusion_proof($1, $2)", events[i].ID, events[i].At)
	})
	if err != nil {
		return err
	}
	p99 := quantile(took[0], 0.99)
	d.add(row{figure: fmt.Sprintf("proof of one event out of %d, p99", sealed), target: "< 5 ms", ratio: ms(p99), verdict: atMost(p99*1e3, 5), ours: both(took[0]),
		note: fmt.Sprintf("p50 / p99 of %d events at random, the statement and its round trip; with the time of the event given %s", len(events), both(took[1]))})
	return nil
}

// ledgerStorage is what the ledger's tables, with their indexes and TOAST, take for an event.
func (d *database) ledgerStorage(ctx context.Context, sealed int64) error {
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var all, tiles, entries, trail float64
	if err := conn.QueryRow(ctx, `select sum(pg_total_relation_size(c.oid)) filter (where c.relname like 'ledger\_%'),
		  sum(pg_total_relation_size(c.oid)) filter (where c.relname = 'ledger_tiles'),
		  sum(pg_total_relation_size(c.oid)) filter (where c.relname = 'ledger_entries'),
		  (select sum(pg_table_size(t.relid)) from pg_partition_tree('custody_data.audit_logs') t)
		from pg_class c where c.relnamespace = 'custody_data'::regnamespace and c.relkind = 'r'`).Scan(&all, &tiles, &entries, &trail); err != nil {
		return err
	}
	for _, m := range []struct {
		figure        string
		target, bytes float64
		note          string
	}{
		{"storage that the ledger adds, bytes an event", 100, all,
			fmt.Sprintf("all tables of the ledger with indexes and TOAST, %d events; beside a row of %.0f bytes", sealed, trail/float64(sealed))},
		{"… of leaves and tiles, once archived", 36, tiles, "kept for good"},
		{"… of finding an event by its id and time, once archived", 40, entries, "which event each leaf is, with the ranges of time and of transactions"},
	} {
		each := m.bytes / float64(sealed)
		d.add(row{figure: m.figure, target: fmt.Sprintf("≤ %.0f", m.target), ratio: fmt.Sprintf("%.1f", each), verdict: atMost(each, m.target), note: m.note})
	}
	return nil
}

// sealBatch is what a call of the sealer takes by default.
const sealBatch = 10_000

// sealer is the job that seals: once a second, until nothing is left that may be sealed.
type sealer struct {
	conn, watch *pgx.Conn
	turns       []float64 // seconds of each
	// At the end of each run, before the last turn: events that have no leaf, and seconds since the oldest.
	waiting, ages []float64
}

func (d *database) newSealer(ctx context.Context) (*sealer, error) {
	s := &sealer{}
	for _, conn := range []**pgx.Conn{&s.conn, &s.watch} {
		var err error
		if *conn, err = pgx.Connect(ctx, d.stack.URL(runnerLogin, d.name)); err != nil {
			s.close(ctx)
			return nil, err
		}
	}
	if _, err := s.seal(ctx); err != nil { // opens the incarnation
		s.close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *sealer) close(ctx context.Context) {
	for _, conn := range []*pgx.Conn{s.conn, s.watch} {
		if conn != nil {
			conn.Close(ctx)
		}
	}
}

// inSystem runs work in the context that the ledger's functions want.
func (s *sealer) inSystem(ctx context.Context, work func(pgx.Tx) error) error {
	return jobs.InContext(ctx, s.conn, jobs.Scope{Tenant: "system", Actor: "sealer"}, work)
}

// seal seals whatever may be sealed now, a transaction each batch, and returns how much that was.
func (s *sealer) seal(ctx context.Context) (sealed int64, err error) {
	for more := true; more; {
		if err := s.inSystem(ctx, func(tx pgx.Tx) error {
			var n int64
			err := tx.QueryRow(ctx, "select (r ->> 'sealed')::bigint, (r ->> 'more')::boolean from custody.seal_audit_log($1) r", sealBatch).Scan(&n, &more)
			sealed += n
			return err
		}); err != nil {
			return 0, err
		}
	}
	return sealed, nil
}

// run seals until ctx ends, then notes what was waiting, and seals that too.
func (s *sealer) run(ctx context.Context) (err error) {
	work := context.WithoutCancel(ctx) // a batch is not broken off
	var turns sync.WaitGroup
	var failed error
	turns.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			started := time.Now()
			if _, failed = s.seal(work); failed != nil {
				return
			}
			s.turns = append(s.turns, time.Since(started).Seconds())
		}
	})
	<-ctx.Done()
	var events, age float64
	err = jobs.InContext(work, s.watch, jobs.Scope{Tenant: "system", Actor: "sealer"}, func(tx pgx.Tx) error {
		return tx.QueryRow(work, "select unsealed_events, coalesce(extract(epoch from age), 0) from custody.sealing_status()").Scan(&events, &age)
	})
	turns.Wait()
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	s.waiting, s.ages = append(s.waiting, events), append(s.ages, age)
	_, err = s.seal(work)
	return err
}

func (s *sealer) forget() { s.turns, s.waiting, s.ages = nil, nil, nil }
