package jobs

import (
	"context"

	"pgcustody/jobs/store"
)

// RequirePrivateStore refuses every store but that of the private stack with this
// id. Whatever writes to a store asks it first, for as long as personal columns
// hold plaintext.
func RequirePrivateStore(ctx context.Context, s store.Store, id string) error {
	private, err := store.IsPrivateStack(ctx, s, id)
	if err != nil {
		return err
	}
	if !private {
		return &store.Error{
			Op: "use", Object: s.URL(), Kind: store.ErrRefused,
			Hint: "personal columns hold plaintext, which only the private stack's store may take: its endpoint is on this machine, and PGCUSTODY_PRIVATE_STACK is the content of its object " + store.PrivateStackID,
		}
	}
	return nil
}
