package store

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Versions yields every version of the objects whose keys start with prefix, key
// by key, of each the oldest first. Those under a delete marker are there too,
// the markers themselves are not.
func (s *s3Store) Versions(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var ofKey []Info // newest first, as the store lists them
		flush := func() bool {
			for _, info := range slices.Backward(ofKey) {
				if !yield(info, nil) {
					return false
				}
			}
			ofKey = ofKey[:0]
			return true
		}
		pages := s3.NewListObjectVersionsPaginator(s.client, &s3.ListObjectVersionsInput{Bucket: &s.bucket, Prefix: s.key(prefix)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(Info{}, s.error(ctx, "list", prefix, err))
				return
			}
			for _, v := range page.Versions {
				key := strings.TrimPrefix(aws.ToString(v.Key), s.prefix)
				if len(ofKey) > 0 && ofKey[0].Key != key && !flush() {
					return
				}
				ofKey = append(ofKey, Info{
					Key: key, Version: aws.ToString(v.VersionId), Size: aws.ToInt64(v.Size), Modified: aws.ToTime(v.LastModified),
				})
			}
		}
		flush()
	}
}

// SweepAll ends the unfinished uploads of all keys that start with prefix.
func (s *s3Store) SweepAll(ctx context.Context, prefix string) (int, error) {
	keys := map[string]bool{}
	pages := s3.NewListMultipartUploadsPaginator(s.client, &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: s.key(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return 0, s.error(ctx, "sweep", prefix, err)
		}
		for _, u := range page.Uploads {
			keys[strings.TrimPrefix(aws.ToString(u.Key), s.prefix)] = true
		}
	}
	swept := 0
	var failures error
	for key := range keys {
		n, err := s.Sweep(ctx, key)
		swept += n
		failures = errors.Join(failures, err)
	}
	return swept, failures
}
