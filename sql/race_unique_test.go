package sql_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where a tenant wants addresses unique, an address is one person's whatever runs
// at once. Serial orders: the first to commit has it, whoever comes later is
// refused; whoever rolls back has had nothing.

const addressed = `select count(*) from custody_data.user_profiles p where p.email_index = (
	select o.email_index from custody_data.user_profiles o join custody_data.identities i using (tenant_id, identity_id) where i.user_id = $1)`

func TestAnAddressIsGivenOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	first, second, worker := b.session(t, app), b.session(t, app), b.session(t, runner)
	first.run(t, tenant, `select custody.set_unique_fields('{email}')`)

	put := func(user, address string) string {
		return fmt.Sprintf(`select custody.put_profile('%s', '{"email":"%s"}')`, user, address)
	}
	patch := func(user, address string) string {
		return fmt.Sprintf(`select custody.patch_profile('%s', '{"email":"%s"}')`, user, address)
	}
	load := func(user, address string) string {
		return fmt.Sprintf(`select custody.prepare_import('user_profiles'); insert into pg_temp.staged_user_profiles (line, user_id, email) values (1, '%s', '%s');
			select custody.import_profiles()`, user, address)
	}
	// refusedOr looks at how the second one ended.
	refusedOr := func(t *testing.T, end string, err error) {
		t.Helper()
		if end == "commit" {
			requireCode(t, err, "PC038")
			return
		}
		require.NoError(t, err)
	}

	for name, c := range map[string]struct {
		first, second   *session
		change, another func(user, address string) string
	}{
		"put and put":       {first, second, put, put},
		"put and patch":     {first, second, put, patch},
		"patch and patch":   {first, second, patch, patch},
		"put and import":    {first, worker, put, load},
		"import and put":    {worker, second, load, put},
		"import and import": {worker, b.session(t, runner), load, load},
	} {
		for _, end := range []string{"commit", "rollback"} {
			t.Run(name+", "+end, func(t *testing.T) {
				one, two, address := newUser("one"), newUser("two"), newUser("address")
				first.run(t, tenant, put(one, newUser("old"))+"; "+put(two, newUser("old")))
				c.first.begin(t, "")
				c.first.must(t, c.change(one, address))
				c.second.begin(t, "")
				waiting := c.second.send(t.Context(), c.another(two, " "+address+" "))
				b.requireWaiting(t, waiting, c.first)
				c.first.must(t, end)
				_, err := waiting.settle(t)
				refusedOr(t, end, err)
				has := map[string]string{"commit": one, "rollback": two}[end]
				require.Equal(t, 1, ask[int](t, b, addressed, has))
				require.Equal(t, has, first.run(t, tenant, fmt.Sprintf(`select custody.find_subject('%s')`, address)))
			})
		}
	}

	t.Run("another address waits for nothing", func(t *testing.T) {
		first.begin(t, "")
		first.must(t, put(newUser("one"), newUser("address")))
		second.run(t, tenant, put(newUser("two"), newUser("address")))
		first.commit(t)
	})

	t.Run("many at once", func(t *testing.T) {
		sessions := b.sessions(t, app, 6)
		for range rounds {
			address := newUser("address")
			users, errs := make([]string, len(sessions)), make([]error, len(sessions))
			var calls []func()
			for i, s := range sessions {
				users[i] = newUser("many")
				calls = append(calls, func() { _, errs[i] = s.tryRun(t.Context(), tenant, "", put(users[i], address)) })
			}
			together(calls...)
			winner := ""
			for i, err := range errs {
				if err == nil {
					require.Empty(t, winner, "two have it")
					winner = users[i]
					continue
				}
				requireCode(t, err, "PC038")
				require.Empty(t, b.identity(t, users[i]), "nobody becomes known by being refused")
			}
			require.NotEmpty(t, winner, "nobody has it")
			require.Equal(t, 1, ask[int](t, b, addressed, winner))
		}
	})

	// They meet on the person's row as well as on the rule: neither order is a circle.
	t.Run("an import and a put of the same person at once", func(t *testing.T) {
		for range rounds {
			user, address := newUser("same"), newUser("address")
			first.run(t, tenant, put(user, address))
			var putErr, loadErr error
			together(
				func() { _, putErr = second.tryRun(t.Context(), tenant, "", put(user, "New."+address)) },
				func() { _, loadErr = worker.tryRun(t.Context(), tenant, "", load(user, address+".net")) },
			)
			require.NoError(t, putErr)
			require.NoError(t, loadErr)
			require.Equal(t, 1, ask[int](t, b, addressed, user))
		}
	})

	t.Run("an import waits for a put of the same person that has the row", func(t *testing.T) {
		user, address := newUser("same"), newUser("address")
		first.run(t, tenant, put(user, address))
		blocker := b.session(t, "custody_super")
		blocker.must(t, "begin")
		blocker.must(t, fmt.Sprintf(`select from custody_data.user_profiles p join custody_data.identities i using (tenant_id, identity_id) where i.user_id = '%s' for update of p`, user))
		second.begin(t, "")
		putting := second.send(t.Context(), put(user, "new."+address))
		b.requireWaiting(t, putting, blocker)
		worker.begin(t, "")
		loading := worker.send(t.Context(), load(user, address+".net"))
		b.requireWaiting(t, loading, second)
		blocker.rollback(t)
		_, err := putting.settle(t)
		require.NoError(t, err)
		_, err = loading.settle(t)
		require.NoError(t, err)
	})
}

// The rule and a write that would break it. Serial orders: the write is first,
// and the rule is refused; or the rule is first, and the write is.
func TestARuleMeetsAWrite(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	writer, ruler := b.session(t, app), b.session(t, runner)
	put := func(user, address string) string {
		return fmt.Sprintf(`select custody.put_profile('%s', '{"email":"%s"}')`, user, address)
	}
	const rule, none = `select custody.set_unique_fields('{email}')`, `select custody.set_unique_fields('{}')`
	address := newUser("address")
	writer.run(t, tenant, put("first", address))

	for _, end := range []string{"commit", "rollback"} {
		t.Run("the write is first, "+end, func(t *testing.T) {
			writer.begin(t, "")
			writer.must(t, put("second", address))
			ruler.begin(t, "")
			ruling := ruler.send(t.Context(), rule)
			b.requireWaiting(t, ruling, writer)
			writer.must(t, end)
			_, err := ruling.settle(t)
			if end == "commit" {
				requireCode(t, err, "PC038")
				writer.run(t, tenant, `select custody.delete_profile('second')`)
				return
			}
			require.NoError(t, err)
			ruler.run(t, tenant, none)
		})
		t.Run("the rule is first, "+end, func(t *testing.T) {
			ruler.begin(t, "")
			ruler.must(t, rule)
			writer.begin(t, "")
			writing := writer.send(t.Context(), put("second", address))
			b.requireWaiting(t, writing, ruler)
			ruler.must(t, end)
			_, err := writing.settle(t)
			if end == "commit" {
				requireCode(t, err, "PC038")
				ruler.run(t, tenant, none)
				return
			}
			require.NoError(t, err)
			writer.run(t, tenant, `select custody.delete_profile('second')`)
		})
	}

	// Whoever's snapshot is older than the rule does not see it, and must not go on blindly.
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run("the write's snapshot is older, "+level, func(t *testing.T) {
			require.NoError(t, writer.tryBegin(t.Context(), "isolation level "+level, tenant, ""))
			ruler.run(t, tenant, rule)
			_, err := writer.send(t.Context(), put("second", address)).settle(t)
			requireCode(t, err, "40001")
			require.Equal(t, 1, ask[int](t, b, addressed, "first"))
			ruler.run(t, tenant, none)
		})
	}
}
