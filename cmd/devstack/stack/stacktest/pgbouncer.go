package stacktest

import (
	"testing"

	"pgcustody/cmd/devstack/stack"
)

// PgBouncer runs a connection pooler in transaction mode before the database
// until the test is over, and returns its URLs by login. The superuser has none.
func PgBouncer(t testing.TB, d *Database) map[string]string {
	t.Helper()
	pooler, err := d.Stack.StartPooler(t.Context(), d.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pooler.Stop(); err != nil {
			t.Error(err)
		}
	})
	urls := map[string]string{}
	for login := range d.URLs {
		if login != stack.Superuser {
			urls[login] = pooler.URL(login)
		}
	}
	return urls
}
