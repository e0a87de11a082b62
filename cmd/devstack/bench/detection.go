package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// measureDetection runs all rules over a day of access events that were all shipped
// in the window, as when detection comes back after a day, and compares that with
// counting the same rows: what nothing that looks at each of them can go below.
//
// Of the events, two fifths are those of 20 programs that read all day long, the
// rest those of 2,000 people; a million persons are read. One in a hundred is a
// login, one in ten thousand a failed one, one in a hundred thousand DDL or about
// roles. A few actors do what the rules look for.
func measureDetection(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "detection")
	if err != nil {
		return err
	}
	defer done()
	events := 2_000_000
	switch {
	case b.quick:
		events = 50_000
	case b.long:
		events = 10_000_000
	}
	started := time.Now()
	if err := d.load(ctx,
		"select custody_data.ensure_access_partitions(now(), now())",
		fmt.Sprintf("insert into custody_data.identities (tenant_id, identity_id, user_id) select '%s', md5('actor-' || n)::uuid, 'actor-' || n from generate_series(0, 2019) n", tenant),
		// Loaded apart and without indexes: attaching makes them.
		`create table bench.access_events (like custody_data.access_events including defaults including constraints)`,
		fmt.Sprintf(`insert into bench.access_events
		  (tenant_id, recorded_at, batch, line, occurred_at, kind, class, action, object_name, login, role, actor_id, purpose, identity_id, rows, client, application, session_id, vxid, xact_at)
		select '%[1]s', now() + n * interval '1 microsecond', n / 10000 + 1, n %% 10000 + 1, at, kind, class, action,
		  case when kind in ('read', 'statement') then 'custody_data.' || (array['user_profiles', 'user_profiles', 'conversations', 'consent_records', 'user_preferences'])[n %% 5 + 1] end,
		  'custody_app', 'custody_readwrite', case when kind in ('read', 'statement') then md5('actor-' || actor)::uuid end,
		  case when kind in ('read', 'statement') then 'treatment' end, case when kind = 'read' then md5('person-' || (n::bigint * 7919 %% 1000000))::uuid end,
		  case when kind in ('read', 'statement') then 1 end, ('10.1.' || actor %% 256 || '.' || actor / 256 + 1)::inet, 'app', to_hex(actor) || '.' || to_hex(n %% 4096), '3/' || n, at
		from (
		  select n, case when n %% 5 < 2 then 2000 + n %% 20 else n * 31 %% 2000 end as actor,
		    now() - interval '1 day' + n * (interval '1 day' / %[2]d) as at,
		    case when n %% 10000 = 0 then 'logon_failed' when n %% 100 = 1 then 'authenticated' when n %% 6 = 2 or n %% 100000 = 7 then 'statement' else 'read' end as kind,
		    case when n %% 10000 = 0 or n %% 100 = 1 then null when n %% 100000 = 7 then 'ROLE' else 'READ' end as class,
		    case when n %% 10000 = 0 or n %% 100 = 1 then null when n %% 100000 = 7 then 'ALTER ROLE' when n %% 6 = 2 then 'SELECT' else 'record.read' end as action
		  from generate_series(1, %[2]d) n
		) e`, tenant, events),
		// Who reads everything: an hour of 6,000 people.
		fmt.Sprintf(`insert into bench.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, action, object_name, login, role, actor_id, identity_id, rows, client, session_id)
		select '%s', now(), 2000000, n, date_trunc('hour', now()) - interval '2 hours' + n * interval '500 milliseconds', 'read', 'READ', 'record.read', 'custody_data.user_profiles', 'custody_app', 'custody_readwrite',
		  md5('actor-7')::uuid, md5('person-' || n)::uuid, 1, '203.0.113.9', 'x.y' from generate_series(1, 6000) n`, tenant),
		`do $$
declare
  v_month constant text := 'access_events_' || to_char(now() at time zone 'UTC', 'YYYY_MM');
  v_bound constant text := (select pg_get_expr(c.relpartbound, c.oid) from pg_class c where c.oid = ('custody_data.' || v_month)::regclass);
begin
  execute format('alter table custody_data.access_events detach partition custody_data.%I', v_month);
  alter table bench.access_events owner to custody_owner;
  execute format('alter table custody_data.access_events attach partition bench.access_events %s', v_bound);
end $$`,
		// How they read on the four weeks before.
		fmt.Sprintf(`insert into custody_data.access_baselines
		select '%s', md5('actor-' || a)::uuid::text, 'custody_data.' || o, current_date - 1 - n, case when a < 2000 then 80 else %[2]d / 100 end, case when a < 2000 then 80 else %[2]d / 100 end
		from generate_series(0, 2019) a, unnest(array['user_profiles', 'conversations', 'consent_records', 'user_preferences']) o, generate_series(0, 27) n`, tenant, events/24/20),
		fmt.Sprintf("insert into custody_data.canaries (tenant_id, identity_id, planted_by) select '%s', md5('person-' || n * 1000)::uuid, md5('actor-0')::uuid from generate_series(1, 50) n", tenant),
		fmt.Sprintf("insert into custody_data.actor_settings values ('%s', '00000000-0000-0000-0000-000000000000', 'Europe/Berlin', '06:00', '20:00', '{1,2,3,4,5,6}')", tenant),
		"insert into custody_data.detection_networks (role_name, networks) values ('custody_readwrite', '{10.0.0.0/8}')",
		"vacuum (analyze) custody_data.access_events",
		"vacuum (analyze) custody_data.access_baselines",
	); err != nil {
		return err
	}
	loaded := time.Since(started)

	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	conn, err := pgx.Connect(ctx, d.stack.URL(runnerLogin, d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var size string
	if err := super.QueryRow(ctx, "select pg_size_pretty(sum(pg_total_relation_size(i.inhrelid))) from pg_inherits i where i.inhparent = 'custody_data.access_events'::regclass").Scan(&size); err != nil {
		return err
	}

	// detect runs the rules once, as the job does; writing only the last time.
	detect := func(dryRun bool) (took time.Duration, found map[string]int, err error) {
		found = map[string]int{}
		started := time.Now()
		err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select custody.set_context('system', 'bench', 'benchmark')"); err != nil {
				return err
			}
			rows, err := tx.Query(ctx, "select rule from custody.detect(now() - interval '1 hour', now() + interval '1 minute', $1)", dryRun)
			if err != nil {
				return err
			}
			var rule string
			_, err = pgx.ForEachRow(rows, []any{&rule}, func() error { found[rule]++; return nil })
			return err
		})
		return time.Since(started), found, err
	}
	count := func() (time.Duration, error) {
		started := time.Now()
		_, err := super.Exec(ctx, "select count(*), max(occurred_at), count(distinct actor_id is null) from custody_data.access_events where recorded_at >= now() - interval '2 hours'")
		return time.Since(started), err
	}
	var dry, bare []float64
	var found map[string]int
	for range 3 {
		took, names, err := detect(true)
		if err != nil {
			return err
		}
		dry, found = append(dry, took.Seconds()), names
		if took, err = count(); err != nil {
			return err
		}
		bare = append(bare, took.Seconds())
	}
	for _, rule := range []string{"bulk_rows", "bulk_people", "network", "canary", "role_statement"} {
		if found[rule] == 0 {
			return fmt.Errorf("rule %s found nothing of what is there: %v", rule, found)
		}
	}
	took, _, err := detect(false)
	if err != nil {
		return err
	}

	target, judged := "< 30 s", atMost(max(median(dry), took.Seconds()), 30)
	if !b.long {
		target, judged = "", none
	}
	b.add(row{figure: fmt.Sprintf("detection over %d access events, all rules", events), target: target, ratio: fmt.Sprintf("%.1f s", median(dry)), verdict: judged,
		ours: perSecond(float64(events) / median(dry)), bare: perSecond(float64(events) / median(bare)),
		note: fmt.Sprintf("dry run, median of 3; the run that writes alerts and baselines %.1f s; counting the same rows %.1f s; table with indexes %s, loaded in %s", took.Seconds(), median(bare), size, loaded.Round(time.Second))})
	return nil
}
