package cli

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"pgcustody/jobs"
	"pgcustody/jobs/keys"
)

// keysEvery is how often the provider is asked for the keys of all tenants. AWS KMS
// hears little of it: what it gave is kept for minutes.
const keysEvery = 5 * time.Second

// keyWatch knows whether the key provider gives the keys of the tenants that have one,
// so that a probe need not ask it.
type keyWatch struct {
	unlock   *jobs.Unlocker // nil: no provider is configured, and none is missed
	provider string
	log      *slog.Logger

	found atomic.Pointer[string] // nil until the provider was asked
}

// problem is why keys are not to be had, in words that hold nothing secret, or "".
func (k *keyWatch) problem() string {
	if k.unlock == nil {
		return ""
	}
	if found := k.found.Load(); found != nil {
		return *found
	}
	return "not asked yet"
}

// run asks until ctx ends.
func (k *keyWatch) run(ctx context.Context) {
	if k.unlock == nil {
		return
	}
	ticker := time.NewTicker(keysEvery)
	defer ticker.Stop()
	for {
		k.ask(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// ask looks once. An answer of the database's says nothing about the provider, and the
// probe has its own.
func (k *keyWatch) ask(ctx context.Context) {
	err := k.unlock.Check(ctx)
	if ctx.Err() != nil || err != nil && !errors.As(err, new(*keys.Error)) {
		return
	}
	found := jobs.Code(err)
	before := k.found.Swap(&found)
	switch {
	case found != "" && (before == nil || *before != found):
		k.log.Error("key provider", "provider", k.provider, "error", found)
	case found == "" && before != nil && *before != "":
		k.log.Info("key provider gives keys again", "provider", k.provider)
	}
}
