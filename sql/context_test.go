package sql_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const whoAmI = `select pg_catalog.concat_ws('|', custody.current_tenant(), custody.current_actor(), custody.current_actor_id()::text,
	custody.current_purpose(), custody.current_subject(), custody.current_subject_id()::text)`

func TestAContextEndsWithItsTransaction(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app := b.session(t, "custody_app")
	app.run(t, tenant, `select custody.put_preferences('pat', '{"theme":"dark"}'), custody.record_consent('pat', 'mail', true, '1')`)
	const set = `select custody.set_context('acme', 'custody_app', 'support', 'pat')`
	const read = `select custody.get_preferences('pat')`
	calls := map[string]string{
		"get":   read,
		"put":   `select custody.put_preferences('pat', '{}')`,
		"event": `select custody.record_audit_event('account.login')`,
	}
	requireGone := func(t *testing.T) {
		t.Helper()
		require.Empty(t, app.must(t, whoAmI))
		require.Empty(t, app.must(t, `select pg_catalog.concat(pg_catalog.current_setting('custody.tenant', true), pg_catalog.current_setting('custody.actor_id', true))`))
		for name, call := range calls {
			_, err := app.try(t.Context(), call)
			pgErr := requireCode(t, err, "PC001")
			require.Contains(t, pgErr.Hint, "begin; select custody.set_context", name)
			require.Contains(t, pgErr.Hint, "commit")
		}
		require.Equal(t, "0", app.must(t, `select count(*) from custody_data.user_preferences`), "no context, no row")
		require.Equal(t, "f", app.must(t, `select custody_data.is_unlocked() or pg_catalog.current_setting('custody.kek', true) <> ''`), "and no key")
	}

	t.Run("in autocommit it is gone before the next statement", func(t *testing.T) {
		app.must(t, set)
		requireGone(t)
	})
	t.Run("statements sent as one are one transaction", func(t *testing.T) {
		require.Equal(t, "t", app.must(t, set+"; select custody.has_consent('pat', 'mail')"))
		requireGone(t)
	})
	for _, end := range []string{"commit", "rollback"} {
		t.Run("after "+end, func(t *testing.T) {
			app.must(t, "begin")
			app.must(t, set)
			require.Equal(t, "acme|custody_app|"+b.identity(t, "custody_app")+"|support|pat|"+b.identity(t, "pat"), app.must(t, whoAmI))
			require.NoError(t, app.unlock(t.Context(), tenant))
			require.Equal(t, `{"theme": "dark"}`, app.must(t, read))
			app.must(t, end)
			requireGone(t)
		})
		t.Run("after "+end+" and chain", func(t *testing.T) {
			app.must(t, "begin")
			app.must(t, set)
			app.must(t, end+" and chain")
			require.Empty(t, app.must(t, whoAmI))
			app.must(t, "rollback")
			requireGone(t)
		})
	}
	t.Run("after an error", func(t *testing.T) {
		app.must(t, "begin")
		app.must(t, set)
		_, err := app.try(t.Context(), "select 1 / 0")
		requireCode(t, err, "22012")
		_, err = app.try(t.Context(), read)
		requireCode(t, err, "25P02")
		app.must(t, "commit") // rolls back
		requireGone(t)
	})
	t.Run("set after a savepoint", func(t *testing.T) {
		app.must(t, "begin")
		app.must(t, "savepoint s")
		app.must(t, set)
		app.must(t, "rollback to savepoint s")
		require.Empty(t, app.must(t, whoAmI), "undone with its savepoint")
		app.must(t, "commit")
		requireGone(t)
	})
}

func TestARefusedContextLeavesNone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app := b.session(t, "custody_app")
	app.run(t, tenant, `select custody.put_preferences('pat', '{}')`)
	long := "repeat('x', 257)"
	for name, c := range map[string]struct{ code, call string }{
		"unknown tenant":       {"PC002", `select custody.set_context('nobody', 'clerk')`},
		"no tenant":            {"PC002", `select custody.set_context(null, 'clerk')`},
		"empty tenant":         {"PC002", `select custody.set_context('', 'clerk')`},
		"no tenant's name":     {"PC002", `select custody.set_context('acme''; --', 'clerk')`},
		"no actor":             {"PC003", `select custody.set_context('acme', null)`},
		"blank actor":          {"PC003", `select custody.set_context('acme', '  ')`},
		"over-long actor":      {"PC003", `select custody.set_context('acme', ` + long + `)`},
		"empty subject":        {"PC003", `select custody.set_context('acme', 'clerk', null, '')`},
		"over-long subject":    {"PC003", `select custody.set_context('acme', 'clerk', null, ` + long + `)`},
		"the system's context": {"PC015", `select custody.set_context('system', 'clerk')`},
	} {
		t.Run(name, func(t *testing.T) {
			// The transaction is over, whatever context it had before.
			app.begin(t, "")
			_, err := app.try(t.Context(), c.call)
			requireCode(t, err, c.code)
			_, err = app.try(t.Context(), `select custody.get_preferences('pat')`)
			requireCode(t, err, "25P02")
			app.rollback(t)
			require.Empty(t, app.must(t, whoAmI))

			// Without an earlier context, a caller that catches the error has none.
			app.must(t, "begin")
			app.must(t, "savepoint s")
			_, err = app.try(t.Context(), c.call)
			requireCode(t, err, c.code)
			app.must(t, "rollback to savepoint s")
			require.Empty(t, app.must(t, whoAmI))
			_, err = app.try(t.Context(), `select custody.get_preferences('pat')`)
			requireCode(t, err, "PC001")
			app.rollback(t)

			// With one, going back to a savepoint goes back to it: to exactly that one.
			app.begin(t, "pat")
			was := app.must(t, whoAmI)
			app.must(t, "savepoint s")
			_, err = app.try(t.Context(), c.call)
			requireCode(t, err, c.code)
			app.must(t, "rollback to savepoint s")
			require.Equal(t, was, app.must(t, whoAmI))
			app.rollback(t)
		})
	}

	t.Run("a new context replaces the old one whole", func(t *testing.T) {
		app.must(t, "begin")
		app.must(t, `select custody.set_context('acme', 'pat', 'support', 'pat')`)
		app.must(t, `select custody.set_context('other', 'clerk')`)
		require.Equal(t, "other|clerk", app.must(t, whoAmI), "nothing of the actor's identity, the purpose or the subject is left")
		require.Equal(t, "0", app.must(t, `select count(*) from custody_data.user_preferences`))
		app.rollback(t)
	})
}
