package keys

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// cache keeps keys in memory for a set time and wipes them then. It asks for a
// key once, however many want it at the same time.
type cache struct {
	keep    time.Duration
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]*entry
	gone    map[string]bool // ids that are never served again
}

type entry struct {
	key   Key
	timer *time.Timer
}

// get returns a copy of the key with this id, from memory or else from fetch. A
// caller that gives up does not take fetch away from the others, so fetch must
// end by itself.
func (c *cache) get(ctx context.Context, id string, fetch func(context.Context) (Key, error)) (Key, error) {
	if key, ok := c.lookup(id); ok {
		return key, nil
	}
	flight := c.flights.DoChan(id, func() (any, error) {
		key, err := fetch(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		c.put(id, key.clone())
		return key, nil
	})
	select {
	case <-ctx.Done():
		return Key{}, ctx.Err()
	case result := <-flight:
		if result.Err != nil {
			return Key{}, result.Err
		}
		return result.Val.(Key).clone(), nil
	}
}

func (c *cache) lookup(id string) (Key, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[id]; ok {
		return e.key.clone(), true
	}
	return Key{}, false
}

// put takes the key over.
func (c *cache) put(id string, key Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
	if c.gone[id] {
		key.Wipe()
		return
	}
	e := &entry{key: key}
	e.timer = time.AfterFunc(c.keep, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.entries[id] == e {
			c.drop(id)
		}
	})
	if c.entries == nil {
		c.entries = map[string]*entry{}
	}
	c.entries[id] = e
}

// drop wipes an entry, if there is one. The caller holds the lock.
func (c *cache) drop(id string) {
	if e, ok := c.entries[id]; ok {
		e.timer.Stop()
		e.key.Wipe()
		delete(c.entries, id)
	}
}

// forget drops a key for good.
func (c *cache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
	if c.gone == nil {
		c.gone = map[string]bool{}
	}
	c.gone[id] = true
}

func (c *cache) isGone(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone[id]
}
