package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// The event that is appended: two words of the vocabulary, a resource that is
// nobody, a known subject, metadata, and, where it says so, a personal part.
const (
	eventWords    = `'phi.access', 'health_record', 'record-' || %s, 'success', '{"count":3,"source":"web"}'`
	eventPersonal = `'{"client":"192.0.2.17"}'`
)

// bareAppend is what the application would write without pgcustody: the same row
// into a table of the same columns, defaults, indexes and partitions.
const bareAppend = `
create function bench.append_event(p_action text, p_resource_type text, p_resource_id text, p_result text, p_metadata jsonb, p_subject_id uuid,
  p_personal jsonb default null, p_log_entry_id uuid default gen_random_uuid())
returns uuid language plpgsql as $$
begin
  insert into bench.audit_logs
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata, personal)
  values (current_setting('custody.tenant'), p_log_entry_id, clock_timestamp(), current_setting('custody.actor_id')::uuid, p_subject_id, p_action,
    p_resource_type, p_resource_id, p_result, current_setting('custody.purpose'), p_metadata, p_personal);
  return p_log_entry_id;
end $$`

// part is a step of the way from the bare function to record_audit_event: what
// it adds to the steps before. With each part the statement grows, so the sum is
// what they cost together.
type part struct{ name, attributes, lookup, check, partition, id, table string }

var appendParts = []part{
	{name: "bare function"},
	{name: "owner's rights and a fixed search_path", attributes: "security definer set search_path = pg_catalog, pg_temp"},
	{name: "look-ups of action, resource type, resource, subject", lookup: `
  select
    (select a.metadata_keys from custody_data.audit_actions a
      where a.tenant_id in (v_tenant, 'system') and a.action = p_action order by a.tenant_id = 'system' limit 1),
    p_resource_type is null or exists (
      select from custody_data.audit_resource_types t where t.tenant_id in (v_tenant, 'system') and t.resource_type = p_resource_type),
    (select i.identity_id from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = p_resource_id),
    (select i.identity_id from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = p_subject)
  into v_keys, v_type_known, v_resource_id, v_subject_id;`},
	{name: "validation", check: `
  v_sound := v_type_known and p_result in ('success', 'failure', 'denied', 'partial')
    and case when p_metadata @> '{}' then p_metadata - v_keys = '{}' end;
  if p_resource_id is not null then
    v_sound := v_sound and char_length(p_resource_id) between 1 and 1024;
  end if;
  if v_sound is not true or nullif(current_setting('custody.subject', true), '') is not null then
    raise exception 'unsound';
  end if;`},
	{name: "whether the month is there", partition: `
  if to_regclass(to_char(v_at at time zone 'UTC', '"custody_data.audit_logs_"YYYY_MM')) is null then
    raise exception 'no partition';
  end if;`},
	{name: "an id that is ordered by time", id: "custody_data.new_entry_id()"},
	{name: "row-level security on the insert", table: "custody_data.audit_logs"},
}

// definition is the function of all parts up to and with this one.
func definition(name string, parts []part) string {
	sum := part{id: "gen_random_uuid()", table: "bench.audit_logs"}
	for _, p := range parts {
		for _, f := range []struct {
			to   *string
			from string
		}{{&sum.attributes, p.attributes}, {&sum.lookup, p.lookup}, {&sum.check, p.check}, {&sum.partition, p.partition}, {&sum.id, p.id}, {&sum.table, p.table}} {
			if f.from != "" {
				*f.to = f.from
			}
		}
	}
	if sum.lookup == "" {
		sum.lookup = "v_subject_id := md5(p_subject)::uuid;"
	}
	return fmt.Sprintf(`
create function bench.%[1]s(p_action text, p_resource_type text, p_resource_id text, p_result text, p_metadata jsonb, p_subject text)
returns uuid language plpgsql %[2]s as $$
declare
  v_tenant constant text := current_setting('custody.tenant');
  v_at constant timestamptz := clock_timestamp();
  v_keys text[];
  v_type_known boolean;
  v_resource_id uuid;
  v_subject_id uuid;
  v_sound boolean;
  v_id uuid;
begin
  %[3]s
  %[4]s
  %[5]s
  v_id := %[6]s;
  insert into %[7]s
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata)
  values (v_tenant, v_id, v_at, current_setting('custody.actor_id')::uuid, v_subject_id, p_action,
    p_resource_type, coalesce(v_resource_id::text, p_resource_id), p_result, current_setting('custody.purpose'), p_metadata);
  return v_id;
end $$`, name, sum.attributes, sum.lookup, sum.check, sum.partition, sum.id, sum.table)
}

func measureAppend(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "append")
	if err != nil {
		return err
	}
	defer done()
	if err := d.load(ctx, people("person-", 1000), people("actor-", 64), partitions("now()", "now()"), "analyze custody_data.identities"); err != nil {
		return err
	}
	if err := d.load(ctx, bareTrail...); err != nil {
		return err
	}
	if err := d.load(ctx, "alter table bench.audit_logs alter column personal type jsonb using null", bareAppend,
		"grant usage on schema bench to custody_owner",
		"grant insert on bench.audit_logs to custody_owner"); err != nil {
		return err
	}

	transaction := func(actor, call string) string {
		return "\\set p random(1, 1000)\n\\set r random(1, 1000000000)\nbegin;\nselect custody.set_context('" + tenant + "', " + actor + ", 'care');\n" + call + ";\ncommit;\n"
	}
	// Only who gives a personal part has to unlock.
	unlocked := func(actor, call string) string { return transaction(actor, unlockScript+call) }
	const own, shared = "'actor-' || (:client_id + 1)::text", "'actor-1'"
	words := fmt.Sprintf(eventWords, ":r::text")
	api := "select custody.record_audit_event(" + words + ", 'person-' || :p::text"
	bareCall := "select bench.append_event(" + words + ", md5('person-' || :p::text)::uuid"
	scripts := []script{
		{name: "bare", login: appLogin, text: transaction(own, bareCall+")")},
		{name: "record_audit_event", login: appLogin, text: transaction(own, api+")")},
		{name: "with a client's id", login: appLogin, text: transaction(own, api+", p_log_entry_id => gen_random_uuid())")},
	}
	sealing := []script{
		{name: "bare", login: appLogin, text: transaction(own, bareCall+", "+eventPersonal+")")},
		{name: "with a personal part", login: appLogin, text: unlocked(own, api+", p_personal => "+eventPersonal+")")},
	}
	sharing := []script{
		{name: "own actors", login: appLogin, text: transaction(own, api+")")},
		{name: "one actor", login: appLogin, text: transaction(shared, api+")")},
	}
	rounds, each, calls, crowd := 7, 4*time.Second, 3000, 64
	if b.quick {
		rounds, each, calls, crowd = 1, time.Second, 50, 16
	}

	// Without waiting for the disk, which is the same for both and hides what differs.
	d.options = "-c synchronous_commit=off"
	if _, err := d.race(ctx, scripts, 8, 1, time.Second); err != nil { // warm
		return err
	}
	tps, err := d.race(ctx, scripts, 8, rounds, each)
	if err != nil {
		return err
	}
	for i, target := range []float64{0, 0.70, 0.55} {
		if i == 0 {
			continue
		}
		r := median(ratios(tps[i], tps[0]))
		b.add(row{figure: []string{"", "append, 8 clients", "append with a client's id, 8 clients"}[i], target: fmt.Sprintf("≥ %.2f", target),
			ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, target), ours: perSecond(median(tps[i])), bare: perSecond(median(tps[0])),
			note: fmt.Sprintf("median of %d rounds of %s, synchronous_commit off", rounds, each)})
	}
	if tps, err = d.race(ctx, sealing, 8, max(rounds/2, 1), each); err != nil {
		return err
	}
	b.add(row{figure: "append with a personal part, sealed, 8 clients", ratio: fmt.Sprintf("%.2f", median(ratios(tps[1], tps[0]))),
		ours: perSecond(median(tps[1])), bare: perSecond(median(tps[0])), note: "unlocking and sealing included, against plaintext; synchronous_commit off"})
	// Connecting counts as part of the time.
	if tps, err = d.race(ctx, sharing, crowd, rounds, 2*each); err != nil {
		return err
	}
	r := median(ratios(tps[1], tps[0]))
	b.add(row{figure: "append, 64 clients with one actor", target: "≥ 0.90", ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, 0.90),
		ours: perSecond(median(tps[1])), bare: perSecond(median(tps[0])), note: "against 64 clients with an actor each"})
	d.options = ""
	if tps, err = d.race(ctx, scripts, 8, max(rounds/2, 1), each); err != nil {
		return err
	}
	for i, figure := range []string{"", "append, commit waits for the disk", "… with a client's id"} {
		if i > 0 {
			b.add(row{figure: figure, ratio: fmt.Sprintf("%.2f", median(ratios(tps[i], tps[0]))), ours: perSecond(median(tps[i])), bare: perSecond(median(tps[0])),
				note: "the same with synchronous_commit on, 8 clients"})
		}
	}
	return d.appendParts(ctx, calls)
}

// appendParts measures what each part of an append costs.
func (d *database) appendParts(ctx context.Context, calls int) error {
	words := fmt.Sprintf(eventWords, "$1::text")
	statements := []string{"select $1::text || $2::text"}
	names := []string{"a statement that does nothing"}
	for i, p := range appendParts {
		name := "append_" + strconv.Itoa(i)
		if err := d.load(ctx, definition(name, appendParts[:i+1]),
			"alter function bench."+name+" owner to custody_owner", "grant execute on function bench."+name+" to custody_readwrite"); err != nil {
			return err
		}
		statements = append(statements, "select bench."+name+"("+words+", $2::text)")
		names = append(names, p.name)
	}
	api := "select custody.record_audit_event(" + words + ", $2::text"
	statements = append(statements, api+")", api+", p_log_entry_id => gen_random_uuid())")

	conn, err := pgx.Connect(ctx, d.stack.URL(appLogin, d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return err
	}
	took, err := alternate(calls, len(statements), func(v, i int) (time.Duration, error) {
		return d.callInContext(ctx, conn, statements[v], strconv.Itoa(i), "person-"+strconv.Itoa(i%1000+1))
	})
	if err != nil {
		return err
	}
	cost := make([]float64, len(statements))
	for i := range took {
		cost[i] = median(took[i])
	}
	var steps []string
	for i := 1; i < len(names); i++ {
		steps = append(steps, fmt.Sprintf("%s %+.0f", names[i], 1e6*(cost[i]-cost[i-1])))
	}
	n := len(names)
	steps = append(steps, fmt.Sprintf("whatever else record_audit_event does %+.0f", 1e6*(cost[n]-cost[n-1])), fmt.Sprintf("a client's id %+.0f", 1e6*(cost[n+1]-cost[n])))
	d.add(row{figure: "append, what each part costs", ours: fmt.Sprintf("%.0f µs", 1e6*(cost[n]-cost[0])), bare: fmt.Sprintf("%.0f µs", 1e6*(cost[1]-cost[0])),
		note: "µs by which the call takes longer, first in its transaction, median of " + strconv.Itoa(calls) + ": " + strings.Join(steps, "; ")})
	return nil
}

// callInContext runs one statement in a transaction of its own under a context,
// unlocked, and says how long the statement took.
func (d *database) callInContext(ctx context.Context, conn *pgx.Conn, statement string, args ...any) (took time.Duration, err error) {
	return took, jobs.InContext(ctx, conn, jobs.Scope{Tenant: tenant, Actor: "actor-1", Purpose: "care", KEK: d.kek.Bytes()}, func(tx pgx.Tx) error {
		started := time.Now()
		_, err := tx.Exec(ctx, statement, args...)
		took = time.Since(started)
		return err
	})
}

// alternate does n rounds in which each of several variants has one turn, first a
// different one each round, and returns the seconds that each took. What disturbs
// the machine disturbs all of them.
func alternate(n, variants int, turn func(variant, round int) (time.Duration, error)) ([][]float64, error) {
	took := make([][]float64, variants)
	for i := range n {
		for v := range variants {
			v = (v + i) % variants
			t, err := turn(v, i)
			if err != nil {
				return nil, err
			}
			took[v] = append(took[v], t.Seconds())
		}
	}
	return took, nil
}
