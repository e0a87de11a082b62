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
	`create policy tenant on bench.user_preferences using (tenant_id = (select nullif(current_setting('bench.tenant', true), ''))
		and ((select nullif(current_setting('bench.subject', true), '')) is null or identity_id = (select nullif(current_setting('bench.subject_id', true), '')::uuid)))`,
	"grant select on bench.user_preferences to custody_readwrite",
}

// measureContext compares transactions whose context a token chose and a MAC protects with
// those that set the same settings by hand, behind policies of the same form on both sides.
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
	plain := fmt.Sprintf(`select set_config('bench.tenant', '%s', true), set_config('bench.actor', 'clerk', true), set_config('bench.actor_id', '', true),
		set_config('bench.purpose', 'support', true), set_config('bench.subject', '', true), set_config('bench.subject_id', '', true);`, tenant)
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
		{fmt.Sprintf("a context with a MAC, reads of %d rows", persons), scan, 1, 0.95},
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

	// What opening adds, in both records of it: the same transaction READ ONLY writes the line alone.
	tps, err := d.race(ctx, []script{
		{name: "opened", login: appLogin, text: transaction(begin, unlockScript+"select custody.get_preferences('person-' || :p::text);\n")},
		{name: "read only", login: appLogin, text: strings.Replace(transaction(begin, unlockScript+"select custody.get_preferences('person-' || :p::text);\n"), "begin;", "begin read only;", 1)},
		{name: "unopened", login: appLogin, text: transaction(begin, unlockScript+strings.ReplaceAll(point, "%s", "custody_data"))},
	}, 4, rounds, span)
	if err != nil {
		return err
	}
	b.add(row{figure: "a value opened, with its line and its event", ratio: fmt.Sprintf("%.2f", median(ratios(tps[0], tps[2]))), ours: perSecond(median(tps[0])), bare: perSecond(median(tps[2])),
		note: "get_preferences, against the same transaction that reads a row by key and opens nothing; 4 clients"})
	b.add(row{figure: "a value opened, with its line alone", ratio: fmt.Sprintf("%.2f", median(ratios(tps[1], tps[2]))), ours: perSecond(median(tps[1])), bare: perSecond(median(tps[2])),
		note: "the same READ ONLY, which has no event"})

	// The server's part of a call and of a line, without the round trip.
	conn, err := pgx.Connect(ctx, d.stack.URL(appLogin, d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	called, err := timed(ctx, conn, calls, "custody.begin_context('"+token+"')")
	if err != nil {
		return err
	}
	logged, err := timed(ctx, super, calls, "custody_data.write_line('context')")
	if err != nil {
		return err
	}
	b.add(row{figure: "begin_context", target: "< 200 µs", ratio: fmt.Sprintf("%.0f µs", called), verdict: atMost(called, 200), ours: fmt.Sprintf("%.0f µs", called),
		note: fmt.Sprintf("in the server, p50 of %d; a line in the log, which it writes where pgaudit logs too, takes %.0f µs more", calls, logged)})
	return nil
}

// timed is the median duration of a call in microseconds, as the server itself sees it. The
// calls are apart, so that none waits for the line of the one before.
func timed(ctx context.Context, conn *pgx.Conn, calls int, call string) (took float64, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
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
