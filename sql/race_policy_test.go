package sql_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// A change of a policy that two decide at once. Serial orders: whoever is first decides, and the other finds it
// decided; what lengthens ends the proposal, or comes after its approval and makes it longer again.
func TestAPolicyIsDecidedOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	proposer, one, other := b.session(t, "custody_dpo"), b.session(t, "custody_runner"), b.session(t, "custody_runner")
	const propose = `select (custody.set_retention_policy('conversations', '10 days', 'less')).change_id`
	const keeps = `select p.keep::text from custody_data.retention_policies p where p.tenant_id = 'acme' and p.class = 'conversations' and $1 <> ''`
	approve := func(change string) string {
		return fmt.Sprintf(`select (custody.approve_retention_change('%s')).decision`, change)
	}
	decisions := map[string]struct {
		statement func(change string) string
		code      string // where the approval went before
		keeps     string
		first     string // code of the approval where this went before
	}{
		"an approval": {statement: approve, code: "PC044", keeps: "10 days", first: "PC044"},
		"a rejection": {statement: func(change string) string {
			return fmt.Sprintf(`select custody.reject_retention_change('%s', 'no')`, change)
		}, code: "PC044", first: "PC044"},
		"a longer one": {statement: func(string) string { return `select custody.set_retention_policy('conversations', '200 days', 'more')` }, keeps: "200 days", first: "PC044"},
	}
	lengthen := func() {
		proposer.run(t, tenant, `select custody.set_retention_policy('conversations', '200 days', 'more')`)
	}
	lengthen()
	for name, d := range decisions {
		t.Run(name+" is second", func(t *testing.T) {
			lengthen()
			change := proposer.run(t, tenant, propose)
			one.begin(t, "")
			require.Equal(t, "approved", one.must(t, approve(change)))
			other.begin(t, "")
			waiting := other.send(t.Context(), d.statement(change))
			b.requireWaiting(t, waiting, one)
			one.commit(t)
			_, err := waiting.settle(t)
			if d.code != "" {
				requireCode(t, err, d.code)
				require.Equal(t, "10 days", ask[string](t, b, keeps, "x"))
			} else {
				require.NoError(t, err)
				require.Equal(t, d.keeps, ask[string](t, b, keeps, "x"))
			}
		})
		t.Run(name+" is first", func(t *testing.T) {
			lengthen()
			change := proposer.run(t, tenant, propose)
			other.begin(t, "")
			other.must(t, d.statement(change))
			one.begin(t, "")
			waiting := one.send(t.Context(), approve(change))
			b.requireWaiting(t, waiting, other)
			other.commit(t)
			_, err := waiting.settle(t)
			requireCode(t, err, d.first)
		})
	}
	t.Run("two proposals", func(t *testing.T) {
		lengthen()
		one.begin(t, "")
		first := one.must(t, propose)
		proposer.begin(t, "")
		waiting := proposer.send(t.Context(), propose)
		b.requireWaiting(t, waiting, one)
		one.commit(t)
		_, err := waiting.settle(t)
		require.NoError(t, err)
		require.Equal(t, "replaced", ask[string](t, b, `select decision from custody_data.retention_changes where change_id = $1::text::uuid`, first))
		require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.retention_changes where tenant_id = $1 and decision is null`, "acme"))
	})
}
