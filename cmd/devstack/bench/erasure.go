package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// erasureSize is how much there is, and how many are erased of whom.
type erasureSize struct {
	people        int // each with as many conversations
	conversations int // of each person
	erased        int // people who are erased and measured, each with as many events
	events        int // of each of those
}

func measureErasure(ctx context.Context, b *bench) error {
	full := erasureSize{people: 1000, conversations: 1000, erased: 200, events: 10_000}
	few := erasureSize{people: 100, conversations: 1000, erased: 60, events: 10_000}
	if b.quick {
		full = erasureSize{people: 40, conversations: 100, erased: 16, events: 200}
		few = erasureSize{people: 20, conversations: 100, erased: 16, events: 200}
	}
	for _, c := range []struct {
		label, order string
		size         erasureSize
	}{
		{"scattered", "random()", full},
		{"clustered", "p, c", full},
		{"scattered, a tenth of the people", "random()", few},
	} {
		if err := b.measureErasureOf(ctx, c.label, c.order, c.size); err != nil {
			return fmt.Errorf("%s: %w", c.label, err)
		}
	}
	return nil
}

func (b *bench) measureErasureOf(ctx context.Context, label, order string, size erasureSize) error {
	d, done, err := b.database(ctx, "erasure")
	if err != nil {
		return err
	}
	defer done()
	if err := d.loadPeople(ctx, order, size); err != nil {
		return err
	}

	runner, err := pgx.Connect(ctx, d.stack.URL(runnerLogin, d.name))
	if err != nil {
		return err
	}
	defer runner.Close(context.WithoutCancel(ctx))
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))

	// Of the people who are erased the first ones warm the sessions, some show the
	// search and an erasure that has to search by itself; half of the others do not
	// wait for the disk.
	warm, searched, unsearched, relaxed := 5, 5, 5, size.erased/2
	if b.quick {
		warm, searched, unsearched, relaxed = 1, 1, 1, 6
	}
	var search, alone []float64
	var ours, bare, oursRelaxed, bareRelaxed []float64
	for i := range size.erased {
		user := fmt.Sprintf("person-%d", i+1)
		request, err := d.requestErasure(ctx, runner, user)
		if err != nil {
			return err
		}
		measured := i >= warm
		rest := i - warm
		commit := "on"
		switch {
		case !measured || rest < searched:
			took, err := d.inContext(ctx, runner, "select custody.search_residue($1)", request)
			if err != nil {
				return err
			}
			if measured {
				search = append(search, took.Seconds())
			}
		case rest < searched+unsearched:
			// The erasure searches the whole tenant itself.
			took, err := d.inContext(ctx, runner, "select custody.erase_subject($1)", request)
			if err != nil {
				return err
			}
			alone = append(alone, took.Seconds())
			continue
		default:
			// What search_residue leaves behind, without reading the trail once more for each person.
			if _, err := super.Exec(ctx, `update custody_data.requests
				set residue_searched_at = now(), residue_searched_xid = pg_snapshot_xmin(pg_current_snapshot()), residue_rows = 0
				where request_id = $1`, request); err != nil {
				return err
			}
			if rest < searched+unsearched+relaxed {
				commit = "off"
			}
		}
		if _, err := runner.Exec(ctx, "set synchronous_commit = "+commit); err != nil {
			return err
		}
		took, err := alternate(1, 2, func(v, _ int) (time.Duration, error) {
			if (v+i)%2 == 0 {
				return d.inContext(ctx, runner, "select custody.erase_subject($1)", request)
			}
			return deleteBare(ctx, runner, user)
		})
		if err != nil {
			return err
		}
		a, o := took[i%2][0], took[(i+1)%2][0]
		switch {
		case !measured:
		case commit == "off":
			oursRelaxed, bareRelaxed = append(oursRelaxed, a), append(bareRelaxed, o)
		default:
			ours, bare = append(ours, a), append(bare, o)
		}
	}
	if err := d.checkErased(ctx, super, size); err != nil {
		return err
	}

	r := median(ours) / median(bare)
	b.add(row{figure: "erasure, " + label, target: "≤ 2.00", ratio: fmt.Sprintf("%.2f", r), verdict: atMost(r, 2),
		ours: both(ours), bare: both(bare),
		note: fmt.Sprintf("p50 / p99 of %d people with %d conversations and %d events each, %d conversations in all; commits wait for the disk", len(ours), size.conversations, size.events, size.people*size.conversations)})
	b.add(row{figure: "… with synchronous_commit off", ratio: fmt.Sprintf("%.2f", median(oursRelaxed)/median(bareRelaxed)), ours: both(oursRelaxed), bare: both(bareRelaxed),
		note: fmt.Sprintf("p50 / p99 of %d people", len(oursRelaxed))})
	b.add(row{figure: "… search_residue before it", ours: ms(median(search)), note: fmt.Sprintf("p50 of %d; reads %d events", len(search), size.erased*size.events)})
	b.add(row{figure: "… erase_subject without it", ours: ms(median(alone)), note: fmt.Sprintf("p50 of %d", len(alone))})
	return nil
}

func both(values []float64) string { return ms(median(values)) + " / " + ms(quantile(values, 0.99)) }

// loadPeople fills the tables of record and the trail, and copies into the bare
// tables row by row in the same order.
func (d *database) loadPeople(ctx context.Context, order string, size erasureSize) error {
	tables := []string{"user_profiles", "user_preferences", "conversations"}
	var statements []string
	for _, table := range tables {
		statements = append(statements, triggersOff(table))
	}
	statements = append(statements,
		people("person-", size.people), people("staff-", 20),
		fmt.Sprintf(`insert into custody_data.user_preferences (tenant_id, identity_id, preferences)
			select '%s', md5('person-' || p)::uuid, bench.sealed('{"language":"de","theme":"dark"}' || p) from generate_series(1, %d) p`, tenant, size.people),
		fmt.Sprintf(`insert into custody_data.conversations (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
			select '%s', md5('person-' || p)::uuid, 'chat-' || p || '-' || c, bench.sealed('About ' || c),
			  bench.sealed(jsonb_build_array(jsonb_build_object('role', 'user', 'text', repeat(md5(p || '.' || c), 14), 'at', at),
			    jsonb_build_object('role', 'assistant', 'text', repeat(md5(c || '.' || p), 14), 'at', at))::text), 2, at, at
			from (select p, c, date_trunc('second', now() - random() * interval '80 days') as at
			  from generate_series(1, %d) p, generate_series(1, %d) c order by %s) x`, tenant, size.people, size.conversations, order),
		partitions("now() - interval '90 days'", "now()"),
		fmt.Sprintf(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, metadata, personal)
			select '%s', gen_random_uuid(), now() - random() * interval '89 days', case when c %% 2 = 0 then md5('person-' || p) else md5('staff-' || c %% 20 + 1) end::uuid,
			  md5('person-' || p)::uuid, 'phi.access', 'health_record', 'record-' || p || '-' || c, '{"count":3,"source":"web"}', bench.sealed('{"client": "192.0.2.17"}')
			from (select p, c from generate_series(1, %d) p, generate_series(1, %d) c order by %s) x`, tenant, size.erased, size.events, order))
	if err := d.load(ctx, statements...); err != nil {
		return err
	}
	// What an erasure looks for it opens, so profiles are sealed for real.
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	if _, err := d.inContext(ctx, super, `select count(custody.put_profile('person-' || p, jsonb_build_object('full_name', 'Name of ' || p,
		'email', 'person-' || p || '@example.com', 'phone', '+49 30 ' || 1000000 + p, 'city', 'Berlin'))) from generate_series(1, $1::int) p`, size.people); err != nil {
		return err
	}
	statements = nil
	for _, table := range tables {
		statements = append(statements, triggersOn(table),
			fmt.Sprintf("create table bench.%[1]s (like custody_data.%[1]s including defaults including indexes)", table))
	}
	statements = append(statements, "set synchronize_seqscans = off",
		"insert into bench.user_profiles select * from custody_data.user_profiles",
		"insert into bench.user_preferences select * from custody_data.user_preferences",
		"insert into bench.conversations select * from custody_data.conversations",
		"vacuum (analyze)", "checkpoint")
	return d.load(ctx, statements...)
}

func (d *database) requestErasure(ctx context.Context, conn *pgx.Conn, user string) (id [16]byte, err error) {
	return id, jobs.InContext(ctx, conn, jobs.Scope{Tenant: tenant, Actor: "officer", Purpose: "benchmark", KEK: d.kek.Bytes()}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select custody.request_erasure($1)", user).Scan(&id)
	})
}

// inContext runs a statement under a context and unlocked, in one transaction and one
// round trip, and says how long all of it took.
func (d *database) inContext(ctx context.Context, conn *pgx.Conn, statement string, args ...any) (time.Duration, error) {
	batch := &pgx.Batch{}
	batch.Queue("select custody.set_context($1, $2, $3)", tenant, "officer", "benchmark")
	batch.Queue("select custody.unlock($1)", d.kek.Bytes())
	batch.Queue(statement, args...)
	started := time.Now()
	err := conn.SendBatch(ctx, batch).Close()
	return time.Since(started), err
}

// deleteBare deletes what erasing the person deletes, also in one transaction and
// one round trip.
func deleteBare(ctx context.Context, conn *pgx.Conn, user string) (time.Duration, error) {
	batch := &pgx.Batch{}
	for _, table := range []string{"conversations", "user_preferences", "user_profiles"} {
		batch.Queue("delete from bench."+table+" where tenant_id = $1 and identity_id = md5($2::text)::uuid", tenant, user)
	}
	started := time.Now()
	err := conn.SendBatch(ctx, batch).Close()
	return time.Since(started), err
}

// checkErased sees to it that both sides did what they were measured for.
func (d *database) checkErased(ctx context.Context, super *pgx.Conn, size erasureSize) error {
	var ours, bare int
	if err := super.QueryRow(ctx, "select (select count(*) from custody_data.erasure_certificates), (select count(*) from custody_data.conversations)").Scan(&ours, &bare); err != nil {
		return err
	}
	if want := (size.people - size.erased) * size.conversations; ours != size.erased || bare != want {
		return fmt.Errorf("%d certificates and %d conversations left, expected %d and %d", ours, bare, size.erased, want)
	}
	return nil
}
