package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// thawDays is how long a thawed copy can be read.
const thawDays = 7

// thaw asks for an object that lies in an archive class, and says when to come back.
func (s *s3Store) thaw(ctx context.Context, key, version string, state *types.InvalidObjectState) error {
	in := &s3.RestoreObjectInput{
		Bucket: &s.bucket, Key: s.key(key),
		RestoreRequest: &types.RestoreRequest{GlacierJobParameters: &types.GlacierJobParameters{Tier: types.TierStandard}},
	}
	if version != "" {
		in.VersionId = &version
	}
	// Intelligent tiering moves the object itself: there is no copy whose days could end.
	if state.StorageClass != types.StorageClassIntelligentTiering {
		in.RestoreRequest.Days = aws.Int32(thawDays)
	}
	when := "in 3 to 5 hours"
	if state.StorageClass == types.StorageClassDeepArchive || state.AccessTier == types.IntelligentTieringAccessTierDeepArchiveAccess {
		when = "in 12 hours"
	}
	e := &Error{Op: "get", Object: s.objectURL(key), Kind: ErrFrozen}
	if state.StorageClass != "" {
		e.Err = fmt.Errorf("class %s", state.StorageClass)
	}
	_, err := s.client.RestoreObject(ctx, in)
	var api smithy.APIError
	switch {
	case err == nil:
		e.Hint = fmt.Sprintf("its thaw was asked for: run again %s, and within %d days after", when, thawDays)
	case errors.As(err, &api) && api.ErrorCode() == "RestoreAlreadyInProgress":
		e.Hint = "its thaw was asked for before and is under way: run again " + when + " from then"
	case ctx.Err() != nil:
		return s.error(ctx, "get", key, err)
	default:
		e.Hint = "its thaw could not be asked for: give these credentials s3:RestoreObject, or have it thawed by who may"
		e.Err = fmt.Errorf("class %s; %w", state.StorageClass, shorten(err))
	}
	return e
}
