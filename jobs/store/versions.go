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
	return withoutMarkers(s.History(ctx, prefix))
}

func withoutMarkers(history iter.Seq2[Info, error]) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for info, err := range history {
			if !info.DeleteMarker && !yield(info, err) {
				return
			}
		}
	}
}

// History is Versions with the delete markers of each key before its versions: not
// every store dates them alike.
func (s *s3Store) History(ctx context.Context, prefix string) iter.Seq2[Info, error] {
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
			// Versions and markers come apart, each in the order of keys.
			versions, markers := page.Versions, page.DeleteMarkers
			for len(versions)+len(markers) > 0 {
				var info Info
				if len(markers) == 0 || len(versions) > 0 && aws.ToString(versions[0].Key) <= aws.ToString(markers[0].Key) {
					v := versions[0]
					versions = versions[1:]
					info = Info{Key: aws.ToString(v.Key), Version: aws.ToString(v.VersionId), Size: aws.ToInt64(v.Size), Modified: aws.ToTime(v.LastModified)}
				} else {
					m := markers[0]
					markers = markers[1:]
					info = Info{Key: aws.ToString(m.Key), Version: aws.ToString(m.VersionId), Modified: aws.ToTime(m.LastModified), DeleteMarker: true}
				}
				info.Key = strings.TrimPrefix(info.Key, s.prefix)
				if len(ofKey) > 0 && ofKey[0].Key != info.Key && !flush() {
					return
				}
				// versitygw begins a page with the version that the last one ended with.
				if !slices.ContainsFunc(ofKey, func(i Info) bool { return i.Version == info.Version }) {
					ofKey = append(ofKey, info)
				}
			}
		}
		flush()
	}
}

// SweepAll ends the unfinished uploads of all keys that start with prefix.
func SweepAll(ctx context.Context, s Store, prefix string) (swept int, err error) {
	keys, err := s.Unfinished(ctx, prefix)
	for _, key := range keys {
		n, failure := s.Sweep(ctx, key)
		swept += n
		err = errors.Join(err, failure)
	}
	return swept, err
}

func (s *s3Store) Unfinished(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	pages := s3.NewListMultipartUploadsPaginator(s.client, &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: s.key(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, s.error(ctx, "sweep", prefix, err)
		}
		for _, u := range page.Uploads {
			keys = append(keys, strings.TrimPrefix(aws.ToString(u.Key), s.prefix))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}
