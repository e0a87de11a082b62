package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// plainConversations are conversations as they would be without sealing: the same
// table, policies, guards, triggers and checks, with the values in plaintext.
const plainConversations = `
set role custody_owner;
create table custody_data.plain_conversations (like custody_data.conversations including all);
alter table custody_data.plain_conversations alter column title type text using null, alter column messages type jsonb using null;
alter table custody_data.plain_conversations enable row level security, force row level security;
create policy plain_conversations_all_all on custody_data.plain_conversations
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
grant select on custody_data.plain_conversations to custody_readwrite;
create trigger a_reject_key_change before update on custody_data.plain_conversations
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'identity_id', 'conversation_id', 'created_at');
create function custody_data.tg_touch_plain() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.version := old.version + 1;
  new.updated_at := now();
  return new;
end
$$;
create trigger m_touch_row before update on custody_data.plain_conversations for each row execute function custody_data.tg_touch_plain();
create trigger a_require_live_identity after insert on custody_data.plain_conversations referencing new table as new_rows
  for each statement execute function custody_data.tg_require_live_identity();
create trigger z_audit_insert after insert on custody_data.plain_conversations referencing new table as new_rows
  for each statement execute function custody_data.tg_audit_conversations();
create trigger z_audit_update after update on custody_data.plain_conversations referencing old table as old_rows new table as new_rows
  for each statement execute function custody_data.tg_audit_conversations();
create function custody.save_plain(p_user_id text, p_conversation_id text, p_messages jsonb, p_title text) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_messages constant jsonb := custody_data.check_messages(p_messages);
  v_identity_id uuid;
  v_started_at timestamptz;
  v_last_message_at timestamptz;
begin
  perform custody_data.check_conversation_id(p_conversation_id), custody_data.check_title(p_title);
  select min((e.value ->> 'at')::timestamptz), max((e.value ->> 'at')::timestamptz) into v_started_at, v_last_message_at
  from jsonb_array_elements(v_messages) e;
  v_identity_id := custody_data.claim_person(p_user_id);
  insert into custody_data.plain_conversations
    (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
  values (v_tenant, v_identity_id, p_conversation_id, p_title, v_messages, jsonb_array_length(v_messages), v_started_at, v_last_message_at)
  on conflict (tenant_id, identity_id, conversation_id) do update set
    title = excluded.title, messages = excluded.messages, message_count = excluded.message_count,
    started_at = excluded.started_at, last_message_at = excluded.last_message_at;
  return p_conversation_id;
end
$$;
create function custody.get_plain(p_user_id text, p_conversation_id text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  return (
    select jsonb_build_object('user_id', p_user_id) || (to_jsonb(c) - array['tenant_id', 'identity_id'])
    from custody_data.plain_conversations c
    where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id) and c.conversation_id = p_conversation_id);
end
$$;
grant execute on function custody.save_plain(text, text, jsonb, text), custody.get_plain(text, text) to custody_readwrite;
reset role`

// measureSealed measures tables whose columns are sealed: reading a profile, saving and
// reading conversations against the same in plaintext, and the rotation of data keys
// while an application works.
func measureSealed(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "sealed")
	if err != nil {
		return err
	}
	defer done()
	persons, reads, rounds, span, idle := 30_000, 3000, 5, 4*time.Second, 20*time.Second
	if b.quick {
		persons, reads, rounds, span, idle = 200, 50, 1, time.Second, time.Second
	}
	if err := d.load(ctx, peopleOf(persons), partitions("now()", "now()"), plainConversations, triggersOff("user_profiles")); err != nil {
		return err
	}
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	if _, err := d.inContext(ctx, super, `select count(custody.put_profile('person-' || p, jsonb_build_object('full_name', 'Name of ' || p,
		'email', 'person-' || p || '@example.com', 'phone', '+49 30 ' || 1000000 + p, 'organisation', 'Organisation ' || p, 'title', 'Dr.', 'address', 'Street ' || p,
		'city', 'Berlin', 'region', 'Berlin', 'postal_code', '10115', 'country', 'Germany'))) from generate_series(1, $1::int) p`, persons); err != nil {
		return err
	}
	if err := d.load(ctx, triggersOn("user_profiles"), "vacuum (analyze)", "checkpoint"); err != nil {
		return err
	}

	app, err := pgx.Connect(ctx, d.stack.URL(appLogin, d.name))
	if err != nil {
		return err
	}
	defer app.Close(context.WithoutCancel(ctx))
	took, err := alternate(reads, 1, func(_, i int) (time.Duration, error) {
		return d.callInContext(ctx, app, "select custody.get_profile($1)", fmt.Sprintf("person-%d", i%persons+1))
	})
	if err != nil {
		return err
	}
	p50 := median(took[0])
	b.add(row{figure: "reading a profile of ten sealed columns, p50", target: "< 1 ms", ratio: ms(p50), verdict: atMost(p50*1e3, 1), ours: both(took[0]),
		note: fmt.Sprintf("p50 / p99 of %d, the statement and its round trip; before it the transaction was unlocked", reads)})

	const text = `jsonb_build_array(jsonb_build_object('role', 'user', 'text', repeat('Where is my order? ', 20)), jsonb_build_object('role', 'assistant', 'text', repeat('It is on its way. ', 20)))`
	transaction := func(unlock, save, get string) string {
		return fmt.Sprintf("\\set p random(1, %d)\n\\set c random(1, 20)\nbegin;\nselect custody.set_context('%s', 'actor-1', 'care');\n%s", persons, tenant, unlock) +
			"select custody." + save + "('person-' || :p::text, 'chat-' || :c::text, " + text + ", 'An order');\nselect custody." + get + "('person-' || :p::text, 'chat-' || :c::text);\ncommit;\n"
	}
	for _, m := range []struct{ figure, target, options string }{
		{"saving and reading a conversation, sealed against plaintext", "≥ 0.60", "-c synchronous_commit=off"},
		{"… where the commit waits for the disk", "", ""},
	} {
		d.options = m.options
		tps, err := d.race(ctx, []script{
			{name: "sealed", login: appLogin, text: transaction(unlockScript, "save_conversation", "get_conversation")},
			{name: "plaintext", login: appLogin, text: transaction("", "save_plain", "get_plain")},
		}, 4, rounds, span)
		if err != nil {
			return err
		}
		r := median(ratios(tps[0], tps[1]))
		line := row{figure: m.figure, target: m.target, ratio: fmt.Sprintf("%.2f", r), ours: perSecond(median(tps[0])), bare: perSecond(median(tps[1])),
			note: fmt.Sprintf("a transaction that sets the context, unlocks, saves two messages and reads them, against the same without unlocking and sealing; 4 clients, median of %d rounds", rounds)}
		if m.target != "" {
			line.verdict = atLeast(r, 0.6)
		}
		b.add(line)
	}
	d.options = ""
	return d.rotation(ctx, persons, idle)
}

// rotation replaces the data keys of all people while an application saves conversations.
func (d *database) rotation(ctx context.Context, persons int, idle time.Duration) error {
	pool, err := d.pool(ctx, runnerLogin)
	if err != nil {
		return err
	}
	defer pool.Close()
	live := &saver{d: d, persons: persons}
	if err := live.start(ctx, 2, 20*time.Millisecond); err != nil {
		return err
	}
	defer live.stop()
	live.measure() // what came before warmed the sessions
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle):
	}
	quiet := live.measure()
	started := time.Now()
	done, err := jobs.Keyring{Pool: pool, Provider: d.provider, Actor: "officer"}.RotateData(ctx, tenant, 0, nil)
	if err != nil {
		return err
	}
	elapsed := time.Since(started)
	busy := live.measure()
	if err := live.stop(); err != nil {
		return err
	}
	if done.Identities < int64(persons) {
		return fmt.Errorf("%d people have new data keys, expected %d", done.Identities, persons)
	}
	rate := float64(done.Values) / elapsed.Seconds()
	d.add(row{figure: "rotation of data keys, values sealed anew", target: "≥ 20000/s", ratio: perSecond(rate), verdict: atLeast(rate, 20_000), ours: elapsed.Round(time.Second / 10).String(),
		note: fmt.Sprintf("%d values of %d people and the indexes of their profiles, one worker on two connections, while an application saves conversations", done.Values, done.Identities)})
	r := quantile(busy, 0.99) / quantile(quiet, 0.99)
	d.add(row{figure: "… live saves meanwhile, p99", target: "≤ 1.50", ratio: fmt.Sprintf("%.2f", r), verdict: atMost(r, 1.5), ours: ms(quantile(busy, 0.99)), bare: ms(quantile(quiet, 0.99)),
		note: fmt.Sprintf("p50 %s against %s; %d and %d calls", ms(median(busy)), ms(median(quiet)), len(busy), len(quiet))})
	return nil
}
