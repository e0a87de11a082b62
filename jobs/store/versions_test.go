package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// TestHistoryHasMarkers: delete markers of a key come before its versions, those
// in the order in which they were written.
func TestHistoryHasMarkers(t *testing.T) {
	s := open(t, true)
	put := func(key string) {
		_, err := s.Put(t.Context(), key, strings.NewReader("x"), PutOptions{})
		require.NoError(t, err)
	}
	hide := func(key string) {
		_, err := s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(key)})
		require.NoError(t, err)
	}
	put("a/1")
	put("a/2")
	hide("a/2")
	put("a/2")
	put("a/3")
	hide("a/3")
	put("b/1")
	var got []string
	for info, err := range s.History(t.Context(), "a/") {
		require.NoError(t, err)
		what := " version"
		if info.DeleteMarker {
			what = " marker"
		}
		require.NotEmpty(t, info.Version)
		got = append(got, info.Key+what)
	}
	require.Equal(t, []string{"a/1 version", "a/2 marker", "a/2 version", "a/2 version", "a/3 marker", "a/3 version"}, got)
	versions := 0
	for _, err := range s.Versions(t.Context(), "a/") {
		require.NoError(t, err)
		versions++
	}
	require.Equal(t, 4, versions)
}

// TestHistoryHasEachVersionOnce, where there are more than a page: versitygw begins a
// page with the version that the last one ended with.
func TestHistoryHasEachVersionOnce(t *testing.T) {
	s := open(t, true)
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	const objects = 2005
	for n := range objects {
		group.Go(func() error {
			_, err := s.Put(ctx, fmt.Sprintf("many/%04d", n), strings.NewReader("x"), PutOptions{})
			return err
		})
	}
	require.NoError(t, group.Wait())
	var keys []string
	for info, err := range s.History(t.Context(), "many/") {
		require.NoError(t, err)
		keys = append(keys, info.Key)
	}
	require.True(t, slices.IsSorted(keys))
	// Len would print them all.
	require.Equal(t, objects, len(keys))
	require.Equal(t, objects, len(slices.Compact(keys)))
}
