package store

import (
	"crypto/rand"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
)

func newBucket(t *testing.T, lock bool) string {
	t.Helper()
	name := "t-" + strings.ToLower(rand.Text())
	s, err := OpenURL(t.Context(), "s3://"+name)
	require.NoError(t, err)
	_, err = s.(*s3Store).client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock})
	require.NoError(t, err)
	return "s3://" + name
}
