package store

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// TestPolicies: each part, as a user of its own of a real server, can do what it needs
// and nothing else.
func TestPolicies(t *testing.T) {
	owner, server := open(t, true), stacktest.Shared(t)
	users, principals := map[string]stack.S3User{}, map[string][]string{}
	for _, part := range PolicyParts {
		user, err := server.NewS3User(t.Context())
		require.NoError(t, err)
		users[part], principals[part] = user, []string{user.Key}
	}
	stranger, err := server.NewS3User(t.Context())
	require.NoError(t, err)
	// What is under test is under a prefix: outside of it nobody has a right.
	url := owner.URL() + "/tenants/prod"
	policy, err := Policy(url, principals)
	require.NoError(t, err)
	var compact bytes.Buffer // versitygw has 4 KiB for it, where it keeps it in an attribute of a file
	require.NoError(t, json.Compact(&compact, policy))
	_, err = server.S3Root().PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &owner.bucket, Policy: aws.String(compact.String())})
	require.NoError(t, err)

	inPrefix := openAt(t, url, "")
	part := func(name string) *s3Store { return as(inPrefix, users[name].Key, users[name].Secret) }
	worker, remover, reader, admin := part("worker"), part("remover"), part("reader"), part("administrator")
	root := as(inPrefix, server.RootKey, server.RootSecret)
	denied := func(err error, what string) {
		t.Helper()
		require.ErrorIs(t, err, ErrAccessDenied, what)
	}
	deleteVersion := func(s *s3Store, key, version string, bypass bool) error {
		_, err := s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key), VersionId: &version, BypassGovernanceRetention: &bypass})
		if err == nil {
			return nil
		}
		return s.error(t.Context(), "delete", key, err)
	}

	const key = "audit-archives/2026/11/x"
	until := inAnHour()
	locked, err := worker.Put(t.Context(), key, strings.NewReader(strings.Repeat("x", partSize+1)), PutOptions{RetainUntil: until, IfNoneMatch: true})
	require.NoError(t, err, "multipart, locked")
	open, err := worker.Put(t.Context(), "exports/t/x", strings.NewReader("personal"), PutOptions{})
	require.NoError(t, err)
	weak, err := worker.putWeak(t.Context(), "audit-archives/weak", until)
	require.NoError(t, err)
	foreign, err := as(owner, server.RootKey, server.RootSecret).Put(t.Context(), "elsewhere/x", strings.NewReader("x"), PutOptions{})
	require.NoError(t, err)

	t.Run("worker writes, locks, lengthens, holds and reads", func(t *testing.T) {
		info, err := worker.Head(t.Context(), key, locked.Version)
		require.NoError(t, err)
		require.True(t, info.LockedUntil(until))
		require.NoError(t, worker.Extend(t.Context(), key, locked.Version, until.Add(1e9)))
		require.NoError(t, worker.SetLegalHold(t.Context(), key, locked.Version, true))
		require.NoError(t, worker.SetLegalHold(t.Context(), key, locked.Version, false))
		require.Len(t, readAll(t, worker, key, locked.Version), partSize+1)
		for _, err := range worker.History(t.Context(), "") {
			require.NoError(t, err)
		}
		_, err = worker.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &worker.bucket, Key: worker.key("left")})
		require.NoError(t, err)
		swept, err := SweepAll(t.Context(), worker, "")
		require.NoError(t, err)
		require.Equal(t, 1, swept)
		findings, err := worker.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, []string{NoDefaultRetention}, names(findings))
	})
	t.Run("worker deletes nothing, bypasses nothing, and changes no setting", func(t *testing.T) {
		for _, bypass := range []bool{false, true} {
			denied(deleteVersion(worker, key, locked.Version, bypass), "locked")
			denied(deleteVersion(worker, "exports/t/x", open.Version, bypass), "not locked")
			denied(deleteVersion(worker, "audit-archives/weak", weak, bypass), "under a lock that can be bypassed")
		}
		_, err := worker.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &worker.bucket, Key: worker.key(key)})
		denied(worker.error(t.Context(), "delete", key, err), "a delete marker")
		_, err = worker.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket: &worker.bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
		})
		denied(worker.error(t.Context(), "set", "", err), "versioning")
		_, err = worker.client.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &worker.bucket, Policy: aws.String(string(policy))})
		denied(worker.error(t.Context(), "set", "", err), "policy")
		_, err = worker.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{
			Bucket: &worker.bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled},
		})
		denied(worker.error(t.Context(), "set", "", err), "lock")
	})
	t.Run("reader reads and lists", func(t *testing.T) {
		require.Len(t, readAll(t, reader, key, locked.Version), partSize+1)
		info, err := reader.Head(t.Context(), key, "")
		require.NoError(t, err)
		require.True(t, info.LockedUntil(until))
		for _, err := range reader.Versions(t.Context(), "") {
			require.NoError(t, err)
		}
		_, err = reader.CheckSettings(t.Context())
		require.NoError(t, err)

		_, err = reader.Put(t.Context(), "x", strings.NewReader("x"), PutOptions{})
		denied(err, "put")
		_, err = reader.Put(t.Context(), "x", strings.NewReader(strings.Repeat("x", partSize+1)), PutOptions{})
		denied(err, "put in parts")
		denied(reader.Extend(t.Context(), key, locked.Version, until.Add(2e9)), "extend")
		denied(reader.SetLegalHold(t.Context(), key, locked.Version, true), "hold")
		denied(deleteVersion(reader, "exports/t/x", open.Version, false), "delete")
	})
	t.Run("administrator lengthens and holds, and neither reads nor writes", func(t *testing.T) {
		require.NoError(t, admin.Extend(t.Context(), key, locked.Version, until.Add(3e9)))
		require.NoError(t, admin.SetLegalHold(t.Context(), key, locked.Version, true))
		require.NoError(t, admin.SetLegalHold(t.Context(), key, locked.Version, false))
		require.Error(t, admin.Extend(t.Context(), key, locked.Version, until), "shortened")
		for _, err := range admin.Versions(t.Context(), "") {
			require.NoError(t, err)
		}
		_, err := admin.Get(t.Context(), key, "")
		denied(err, "get")
		_, err = admin.Put(t.Context(), "x", strings.NewReader("x"), PutOptions{})
		denied(err, "put")
		for _, bypass := range []bool{false, true} {
			denied(deleteVersion(admin, "audit-archives/weak", weak, bypass), "delete")
		}
	})
	t.Run("remover deletes what is not locked, where it may", func(t *testing.T) {
		n, err := remover.Delete(t.Context(), "exports/t/x")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		for _, bypass := range []bool{false, true} {
			denied(deleteVersion(remover, key, locked.Version, bypass), "locked")
			denied(deleteVersion(remover, "audit-archives/weak", weak, bypass), "under a lock that can be bypassed")
		}
		kept, err := root.Put(t.Context(), "log/o/checkpoint/1", strings.NewReader("x"), PutOptions{})
		require.NoError(t, err)
		denied(deleteVersion(remover, "log/o/checkpoint/1", kept.Version, false), "the ledger's log is for nobody to delete")
		_, err = remover.Get(t.Context(), key, "")
		denied(err, "get")
	})
	t.Run("others, and other prefixes", func(t *testing.T) {
		_, err := as(inPrefix, stranger.Key, stranger.Secret).Get(t.Context(), key, "")
		denied(err, "stranger")
		for _, name := range PolicyParts {
			s := as(owner, users[name].Key, users[name].Secret)
			_, err := s.Get(t.Context(), "elsewhere/x", foreign.Version)
			denied(err, name)
			_, err = s.Put(t.Context(), "elsewhere/y", strings.NewReader("x"), PutOptions{})
			denied(err, name)
			denied(deleteVersion(s, "elsewhere/x", foreign.Version, false), name)
		}
	})
}

// What somebody gives them beside gives them no bypass.
func TestPoliciesDenyTheBypass(t *testing.T) {
	owner, server := open(t, true), stacktest.Shared(t)
	root := as(owner, server.RootKey, server.RootSecret)
	for _, part := range []string{"worker", "remover", "administrator"} {
		user, err := server.NewS3User(t.Context())
		require.NoError(t, err)
		text, err := Policy(owner.URL(), map[string][]string{part: {user.Key}})
		require.NoError(t, err)
		var policy map[string]any
		require.NoError(t, json.Unmarshal(text, &policy))
		policy["Statement"] = append(policy["Statement"].([]any), map[string]any{
			"Effect": "Allow", "Principal": map[string]any{"AWS": []string{user.Key}},
			"Action": []string{"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"}, "Resource": "arn:aws:s3:::" + owner.bucket + "/*",
		})
		text, err = json.Marshal(policy)
		require.NoError(t, err)
		_, err = root.client.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &owner.bucket, Policy: aws.String(string(text))})
		require.NoError(t, err)
		weak, err := root.putWeak(t.Context(), "audit-archives/weak", inAnHour())
		require.NoError(t, err)
		gaveIn, err := as(owner, user.Key, user.Secret).bypass(t.Context(), "audit-archives/weak", weak)
		require.NoError(t, err)
		require.False(t, gaveIn, part)
		free, err := root.Put(t.Context(), "free", strings.NewReader("x"), PutOptions{})
		require.NoError(t, err)
		_, err = as(owner, user.Key, user.Secret).client.DeleteObject(t.Context(), &s3.DeleteObjectInput{
			Bucket: &owner.bucket, Key: aws.String("free"), VersionId: &free.Version,
		})
		require.NoError(t, err, "what was given beside counts otherwise")
	}
}

func TestPolicyDocument(t *testing.T) {
	text, err := Policy("s3://evidence", map[string][]string{"reader": {"arn:aws:iam::1:role/a", "arn:aws:iam::1:role/b"}})
	require.NoError(t, err)
	require.NotRegexp(t, "BUCKET|PREFIX|PRINCIPAL", string(text))
	var policy struct {
		Version   string
		Statement []struct {
			Principal struct{ AWS []string }
			Resource  []string
		}
	}
	require.NoError(t, json.Unmarshal(text, &policy))
	require.Equal(t, "2012-10-17", policy.Version)
	require.Len(t, policy.Statement, 2)
	require.Equal(t, []string{"arn:aws:iam::1:role/a", "arn:aws:iam::1:role/b"}, policy.Statement[1].Principal.AWS)
	require.Equal(t, []string{"arn:aws:s3:::evidence/*"}, policy.Statement[1].Resource)
	_, err = Policy("file:///x", nil)
	require.ErrorIs(t, err, ErrBadURL)
}
