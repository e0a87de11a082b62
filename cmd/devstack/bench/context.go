package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// plainPreferences are preferences behind a policy that believes settings, which is what
// an application has that does without: the same rows, index and conditions.
var plainPreferences = []string{
	"create table bench.user_preferences (like custody_data.user_preferences including defaults including indexes)",
	"insert into bench.user_preferences select * from custody_data.user_preferences",
	"alter table bench.user_preferences enable row level security",
	`create policy tenant on bench.user_preferences using (tenant_id = (select nullif(current_setting('custody.tenant', true), ''))
		and ((select nullif(current_setting('custody.subject', true), '')) is null or identity_id = (select nullif(current_setting('custody.subject_id', true), '')::uuid)))`,
	"grant select on bench.user_preferences to custody_readwrite, custody_worker, custody_owner",
	"grant usage on schema bench to custody_owner",
	unrecorded("bench"),
	unrecorded("custody_data"),
}

// unrecorded makes a function that opens preferences of a schema as get_preferences does, the
// same key by the same functions, but for the record of the read.
func unrecorded(schema string) string {
	return fmt.Sprintf(`create function bench.get_preferences_of_%[1]s(p_user_id text) returns jsonb language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
	declare
		v_tenant constant text := custody_data.require_context();
		v_row %[1]s.user_preferences;
		v_values text[];
	begin
		perform custody_data.check_user_id(p_user_id);
		select p.* into v_row from %[1]s.user_preferences p where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id);
		v_values := custody_data.open_unseen(v_row.identity_id, 'user_preferences', v_row.identity_id::text, array['preferences'], array[v_row.preferences]);
		return v_values[1]::jsonb;
	end $f$;
	alter function bench.get_preferences_of_%[1]s(text) owner to custody_owner;
	grant execute on function bench.get_preferences_of_%[1]s(text) to custody_readwrite, custody_worker`, schema)
}

// measureContext compares transactions whose context a token chose and a MAC protects with
// those that set the same settings by hand, behind policies of the same form on both sides:
// rows that are read as they stand, then values that are opened, on both sides by the same
// function but for the record of the read. A read of many rows is measured as itself too,
// in a context that stands.
func measureContext(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "context")
	if err != nil {
		return err
	}
	defer done()
	persons, rounds, span, calls := 10_000, 9, 4*time.Second, 5000
	if b.quick {
		persons, rounds, span, calls = 100, 1, time.Second, 50
	}
	key := sha256.Sum256([]byte("key of tokens"))
	if err := d.load(ctx,
		people("person-", persons),
		fmt.Sprintf("insert into custody_data.identities (tenant_id, user_id) values ('%s', 'clerk')", tenant),
		triggersOff("user_preferences"),
		partitions("now()", "now()"),
		fmt.Sprintf("insert into custody_keys.context_keys (kid, kind, secret) values ('bench', 'token', '\\x%x')", key),
		"insert into custody_data.logins (tenant_id, role_name, mode) values ('system', '"+appLogin+"', 'token')",
	); err != nil {
		return err
	}
	// They are really sealed, to be opened.
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	if _, err := d.inContext(ctx, super, `select count(custody.put_preferences('person-' || p, '{"theme": "dark"}')) from generate_series(1, $1::int) p`, persons); err != nil {
		return err
	}
	if err := d.load(ctx, append(plainPreferences, triggersOn("user_preferences"), "vacuum (analyze)", "checkpoint")...); err != nil {
		return err
	}

	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"HS256","typ":"JWT","kid":"bench"}`)) + "." +
		encode(fmt.Appendf(nil, `{"tenant":%q,"sub":"clerk","purpose":"support","exp":%d}`, tenant, time.Now().Add(59*time.Minute).Unix()))
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(text))
	token := text + "." + encode(mac.Sum(nil))

	const point = "select version from %s.user_preferences where tenant_id = '" + tenant + "' and identity_id = md5('person-' || :p::text)::uuid;\n"
	const scan = "select count(*), sum(version) from %s.user_preferences where tenant_id = '" + tenant + "';\n"
	const list = "select identity_id, version, updated_at from %s.user_preferences where tenant_id = '" + tenant + "';\n"
	plain := fmt.Sprintf(`select set_config('custody.tenant', '%s', true), set_config('custody.actor', 'clerk', true), set_config('custody.actor_id', '', true),
		set_config('custody.purpose', 'support', true), set_config('custody.subject', '', true), set_config('custody.subject_id', '', true);`, tenant)
	plain = strings.Join(strings.Fields(plain), " ") + "\n"
	begin := "select custody.begin_context('" + token + "');\n"
	transaction := func(context, statements string) string {
		return fmt.Sprintf("\\set p random(1, %d)\nbegin;\n", persons) + context + statements + "commit;\n"
	}
	for _, m := range []struct {
		figure, statements string
		clients            int
		target             float64
	}{
		{fmt.Sprintf("a context with a MAC, reads of %d rows, which the client gets", persons), list, 1, 0.95},
		{fmt.Sprintf("a context with a MAC, reads of %d rows, which are counted and summed", persons), scan, 1, 0.95},
		{"a context with a MAC, one read by key", point, 4, 0.55},
		{"a context with a MAC, ten reads by key", strings.Repeat(point, 10), 4, 0.60},
	} {
		of := func(schema string) string { return strings.ReplaceAll(m.statements, "%s", schema) }
		tps, err := d.race(ctx, []script{
			{name: "tokens", login: appLogin, text: transaction(begin, of("custody_data"))},
			{name: "settings", login: appLogin, text: transaction(plain, of("bench"))},
		}, m.clients, rounds, span)
		if err != nil {
			return err
		}
		r := median(ratios(tps[0], tps[1]))
		b.add(row{figure: m.figure, target: fmt.Sprintf("≥ %.2f", m.target), ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, m.target),
			ours: perSecond(median(tps[0])), bare: perSecond(median(tps[1])),
			note: fmt.Sprintf("begin_context, against set_config of the same six settings, RLS of the same form on both sides; %d clients, median of %d rounds", m.clients, rounds)})
	}

	// Values that are opened, each another person's, so that each read has its line and, where the transaction may write, its event.
	opened := func(begin, context, function string, reads int) string {
		var text strings.Builder
		for i := range reads {
			fmt.Fprintf(&text, "\\set p%d random(1, %d)\n", i, persons)
		}
		text.WriteString(begin + context + unlockScript)
		for i := range reads {
			fmt.Fprintf(&text, "select %s('person-' || :p%d::text);\n", function, i)
		}
		return text.String() + "commit;\n"
	}
	for _, m := range []struct {
		figure string
		reads  int
		target float64
	}{
		{"one value opened by key", 1, 0.55},
		{"ten values opened by key, each of another person", 10, 0.60},
	} {
		tps, err := d.race(ctx, []script{
			// A session of an application's pool has written before: its first transaction that may write draws its secret.
			{name: "tokens, read only", login: appLogin, text: "\\if :first\nbegin;\n" + begin + "commit;\n\\set first 0\n\\endif\n" + opened("begin read only;\n", begin, "custody.get_preferences", m.reads)},
			{name: "tokens, no line", login: appLogin, text: opened("begin;\n", begin, "bench.get_preferences_of_custody_data", m.reads)},
			{name: "tokens, event", login: appLogin, text: opened("begin;\n", begin, "custody.get_preferences", m.reads)},
			{name: "settings", login: runnerLogin, text: opened("begin;\n", plain, "bench.get_preferences_of_bench", m.reads)},
		}, 4, rounds, span)
		if err != nil {
			return err
		}
		of := func(i int) float64 { return median(ratios(tps[i], tps[3])) }
		b.add(row{figure: "a context with a MAC, " + m.figure + ", read line included", target: fmt.Sprintf("≥ %.2f", m.target), ratio: fmt.Sprintf("%.2f", of(0)), verdict: atLeast(of(0), m.target),
			ours: perSecond(median(tps[0])), bare: perSecond(median(tps[3])),
			note: fmt.Sprintf("begin_context, unlock, get_preferences READ ONLY; against set_config of the same settings by a login in free mode, unlock, the same opening without a record; 4 clients. Without the line %.2f, which is the part of begin_context and MAC", of(1))})
		b.add(row{figure: "… and with the line's event in the trail, whose commit waits for the disk", ratio: fmt.Sprintf("%.2f", of(2)), ours: perSecond(median(tps[2])), bare: perSecond(median(tps[3]))})
	}

	// The server's part of a call and of a line, without the round trip.
	conn, err := pgx.Connect(ctx, d.stack.URL(appLogin, d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, begin); err != nil {
		return err
	}
	var reads [2][]float64
	for range rounds {
		for i, schema := range []string{"custody_data", "bench"} {
			took, err := timed(ctx, tx, calls/50, strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(strings.TrimSpace(scan), "%s", schema), "select "), ";"))
			if err != nil {
				return err
			}
			reads[i] = append(reads[i], took)
		}
	}
	r := median(ratios(reads[1], reads[0]))
	b.add(row{figure: fmt.Sprintf("a context with a MAC, a read of %d rows as such", persons), target: "≥ 0.95", ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, 0.95),
		ours: fmt.Sprintf("%.0f µs", median(reads[0])), bare: fmt.Sprintf("%.0f µs", median(reads[1])),
		note: fmt.Sprintf("the statement in a context that stands, in the server, p50 of %d, median of %d rounds", calls/50, rounds)})
	called, err := timed(ctx, tx, calls, "custody.begin_context('"+token+"')")
	if err != nil {
		return err
	}
	again, err := super.Begin(ctx)
	if err != nil {
		return err
	}
	defer again.Rollback(context.WithoutCancel(ctx))
	logged, err := timed(ctx, again, calls, "custody_data.write_line('context')")
	if err != nil {
		return err
	}
	b.add(row{figure: "begin_context", target: "< 200 µs", ratio: fmt.Sprintf("%.0f µs", called), verdict: atMost(called, 200), ours: fmt.Sprintf("%.0f µs", called),
		note: fmt.Sprintf("in the server, p50 of %d; a line in the log, which it writes where pgaudit logs too, takes %.0f µs more", calls, logged)})
	return nil
}

// timed is the median duration of a call in microseconds, as the server itself sees it. The
// calls are apart, so that none waits for the line of the one before.
func timed(ctx context.Context, tx pgx.Tx, calls int, call string) (took float64, err error) {
	if _, err := tx.Exec(ctx, fmt.Sprintf(`do $do$
declare
  v_began timestamptz;
  v_took numeric[] := '{}';
begin
  for i in 1 .. %d loop
    perform pg_sleep(0.0005);
    v_began := clock_timestamp();
    perform %s;
    v_took := v_took || extract(epoch from clock_timestamp() - v_began) * 1000000;
  end loop;
  perform set_config('bench.took', (select percentile_cont(0.5) within group (order by t) from unnest(v_took) t)::text, true);
end
$do$`, calls, call)); err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, "select current_setting('bench.took')::float8").Scan(&took)
	return took, err
}
