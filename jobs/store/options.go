package store

import (
	"fmt"
	"strings"
)

// Options are settings of a store beside its address. The zero value is right for most.
type Options struct {
	// StorageClass is that of locked objects of 128 KiB or more, by the store's own name
	// (STANDARD_IA, GLACIER_IR, COLDLINE …); smaller ones cost more in such classes. It
	// must be one that can be read at once, since whatever is written is read back.
	StorageClass string
	// SSE asks S3 to encrypt: AES256 or aws:kms, the latter under the key SSEKMSKey or
	// else under the account's own.
	SSE, SSEKMSKey string
	// PathStyle puts the bucket of S3 behind the host, `true`, or into its name, `false`;
	// by default behind it at other endpoints than Amazon's.
	PathStyle string
}

// classFrom is the size from which StorageClass counts. The classes for what is hardly
// read bill smaller objects as if they had it.
const classFrom = 128 << 10

// OptionError is an option that is wrong. Name is the field's.
type OptionError struct {
	Name, Value, Problem string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("%s %q: %s", e.Name, e.Value, e.Problem)
}

// Check refuses what would fail later, or worse, work.
func (o Options) Check() error {
	switch strings.ToUpper(o.StorageClass) {
	case "GLACIER", "DEEP_ARCHIVE":
		return &OptionError{"StorageClass", o.StorageClass,
			"an object of this class cannot be read back, which each must be before it counts: use GLACIER_IR, or move old objects by a lifecycle rule of the bucket"}
	}
	switch {
	case o.SSE != "" && o.SSE != "AES256" && o.SSE != "aws:kms":
		return &OptionError{"SSE", o.SSE, "must be AES256 or aws:kms"}
	case o.SSEKMSKey != "" && o.SSE != "aws:kms":
		return &OptionError{"SSEKMSKey", o.SSEKMSKey, "names a key, but the encryption asked for is not aws:kms"}
	case o.PathStyle != "" && o.PathStyle != "true" && o.PathStyle != "false":
		return &OptionError{"PathStyle", o.PathStyle, "must be true or false"}
	}
	return nil
}
