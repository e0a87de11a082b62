package importer

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
)

// Bounds of what --register-vocabulary adds in one import: a file with more kinds of action than this has
// something else in that field.
const (
	maxNewActions = 10_000
	maxNewTypes   = 10_000
	maxActionKeys = 1_000
)

// known is the vocabulary in force for a tenant, its own and the shared one, read when an import begins.
type known struct {
	actions map[string]*action
	types   map[string]bool
}

// An action is what events may be called, with the keys that their metadata may have.
type action struct {
	name        string
	keys        map[string]bool
	description string
	// found has the keys that lines use and keys lacks; nil unless the import registers them.
	found map[string]bool
}

// vocabulary checks the lines of one goroutine against what is known, and collects what is to be registered.
type vocabulary struct {
	known    *known
	register bool
	actions  map[string]*action
	types    map[string]bool
}

func newVocabulary(k *known, register bool) *vocabulary {
	v := &vocabulary{known: k, register: register}
	if register {
		v.actions, v.types = map[string]*action{}, map[string]bool{}
	}
	return v
}

func (v *vocabulary) action(name []byte) (*action, *problem) {
	if a := v.actions[string(name)]; a != nil {
		return a, nil
	}
	a := v.known.actions[string(name)]
	switch {
	case a != nil && !v.register:
		return a, nil
	case a == nil && !isName(name):
		return nil, codedProblemf(actionCode, "action", "is not a name of up to 128 letters, digits, and . _ : -")
	case a == nil && !v.register:
		return nil, codedProblemf(actionCode, "action", "%q is not in the tenant's vocabulary", name)
	case len(v.actions) >= maxNewActions:
		return nil, codedProblemf(actionCode, "action", "is one of more than %d that the vocabulary lacks", maxNewActions)
	}
	fresh := &action{name: string(name), found: map[string]bool{}}
	if a != nil {
		fresh.keys, fresh.description = a.keys, a.description
	}
	v.actions[fresh.name] = fresh
	return fresh, nil
}

func (v *vocabulary) resourceType(name []byte) *problem {
	switch {
	case v.known.types[string(name)] || v.types[string(name)]:
		return nil
	case !isName(name):
		return codedProblemf(resourceCode, "resource_type", "is not a name of up to 128 letters, digits, and . _ : -")
	case !v.register:
		return codedProblemf(resourceCode, "resource_type", "%q is not in the tenant's vocabulary", name)
	case len(v.types) >= maxNewTypes:
		return codedProblemf(resourceCode, "resource_type", "is one of more than %d that the vocabulary lacks", maxNewTypes)
	}
	v.types[string(name)] = true
	return nil
}

// key checks a key of an event's metadata.
func (v *vocabulary) key(a *action, name []byte) *problem {
	switch {
	case a.keys[string(name)] || a.found[string(name)]:
		return nil
	case a.found == nil:
		return codedProblemf(metadataKeyCode, "metadata."+shorten(name), "is no key that the vocabulary allows to %q", a.name)
	case len(name) == 0 || len(name) > nameMax:
		return codedProblemf(metadataKeyCode, "metadata", "has a key of %d bytes; 1 to %d are allowed", len(name), nameMax)
	case len(a.found) >= maxActionKeys:
		return codedProblemf(metadataKeyCode, "metadata", "has more than %d keys that the vocabulary lacks for %q", maxActionKeys, a.name)
	}
	a.found[string(name)] = true
	return nil
}

// merge takes over what another goroutine collected.
func (v *vocabulary) merge(other *vocabulary) {
	for name, a := range other.actions {
		if mine := v.actions[name]; mine != nil {
			maps.Copy(mine.found, a.found)
		} else {
			v.actions[name] = a
		}
	}
	maps.Copy(v.types, other.types)
}

// readVocabulary reads what is known to the tenant in context.
func readVocabulary(ctx context.Context, tx pgx.Tx) (*known, error) {
	queries := db.New()
	actions, err := queries.KnownActions(ctx, tx)
	if err != nil {
		return nil, err
	}
	types, err := queries.KnownResourceTypes(ctx, tx)
	if err != nil {
		return nil, err
	}
	k := &known{actions: make(map[string]*action, len(actions)), types: set(types...)}
	for _, row := range actions {
		k.actions[row.Action] = &action{name: row.Action, keys: set(row.MetadataKeys...), description: row.Description}
	}
	return k, nil
}

// write registers the actions that are new or have new keys, and the new resource types.
func (v *vocabulary) write(ctx context.Context, tx pgx.Tx, report *Report) error {
	const description = "Added by an import."
	queries := db.New()
	for _, name := range slices.Sorted(maps.Keys(v.actions)) {
		a := v.actions[name]
		if v.known.actions[name] != nil && len(a.found) == 0 {
			continue
		}
		if err := queries.RegisterAction(ctx, tx, db.RegisterActionParams{
			Action: name, MetadataKeys: a.allKeys(), Description: cmp.Or(a.description, description),
		}); err != nil {
			return err
		}
		report.ActionsRegistered++
	}
	for _, name := range slices.Sorted(maps.Keys(v.types)) {
		if err := queries.RegisterResourceType(ctx, tx, db.RegisterResourceTypeParams{ResourceType: name, Description: description}); err != nil {
			return err
		}
		report.ResourceTypesRegistered++
	}
	return nil
}

func (a *action) allKeys() []string {
	all := maps.Clone(a.found)
	if all == nil {
		all = map[string]bool{}
	}
	maps.Copy(all, a.keys)
	return slices.Sorted(maps.Keys(all))
}

// isName matches the check that the vocabulary's tables have on names.
func isName(s []byte) bool {
	if len(s) == 0 || len(s) > nameMax {
		return false
	}
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != ':' && c != '-') {
			return false
		}
	}
	return true
}
