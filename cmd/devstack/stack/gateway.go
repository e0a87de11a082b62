package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// Region is what the S3 server calls its region.
	Region = "us-east-1"

	gatewayModule = "github.com/versity/versitygw/cmd/versitygw"
)

var gatewaySignals = signals{kind: syscall.SIGTERM, hard: syscall.SIGKILL, patience: 10 * time.Second}

// startGateway starts the S3 server if it does not run and makes the bucket.
func (s *Stack) startGateway(ctx context.Context) error {
	if s.Gateway.alive() {
		if s.gatewayAnswers(ctx) == nil {
			return nil
		}
		if err := s.Gateway.stop(ctx, gatewaySignals); err != nil {
			return err
		}
	}
	exe, err := Tool(ctx, "versitygw", gatewayModule)
	if err != nil {
		return err
	}
	dir := s.path("s3")
	objects, versions, sidecar := filepath.Join(dir, "objects"), filepath.Join(dir, "versions"), filepath.Join(dir, "sidecar")
	users := filepath.Join(dir, "users")
	for _, dir := range []string{objects, versions, users} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// Locks and versions are extended attributes of the files, which not every
	// file system has; with a sidecar they are files.
	var metadata []string
	if err := syscall.Setxattr(objects, "user.devstack", nil, 0); err != nil {
		if err := os.MkdirAll(sidecar, 0o700); err != nil {
			return err
		}
		metadata = []string{"--sidecar", sidecar}
	}
	s.RootKey, s.RootSecret = cmp.Or(s.RootKey, random(8)), cmp.Or(s.RootSecret, random(20))
	env := []string{"PATH=/usr/bin:/bin", "ROOT_ACCESS_KEY=" + s.RootKey, "ROOT_SECRET_KEY=" + s.RootSecret}
	log := filepath.Join(dir, "versitygw.log")

	// Another program may take the port between the choice and the start.
	for attempt := 1; ; attempt++ {
		if s.S3Port, err = freePort(s.S3Port); err != nil {
			return err
		}
		args := []string{"--quiet", "--health", "/health", "--port", strings.TrimPrefix(s.Endpoint(), "http://"), "--iam-dir", users, "posix", "--versioning-dir", versions}
		if s.Gateway, err = launch(log, env, exe, append(append(args, metadata...), objects)...); err != nil {
			return err
		}
		if err := s.save(); err != nil {
			return err
		}
		if err = s.waitForGateway(ctx); err == nil {
			break
		}
		err = errors.Join(err, s.Gateway.stop(ctx, gatewaySignals))
		if attempt == 3 || ctx.Err() != nil {
			return fmt.Errorf("start versitygw: %w: %s", err, tail(log))
		}
	}
	if err := s.addUser(ctx, S3User{s.AccessKey, s.SecretKey}, "userplus"); err != nil {
		return err
	}
	s.log.Info("versitygw_started", "pid", s.Gateway.PID, "port", s.S3Port)
	return s.NewBucket(ctx, s.Bucket, true)
}

func (s *Stack) waitForGateway(ctx context.Context) error {
	var ended error
	err := retry(ctx, 30*time.Second, func() error {
		err := s.gatewayAnswers(ctx)
		if err != nil && !s.Gateway.starting() {
			ended = fmt.Errorf("versitygw ended: %w", err)
			return nil
		}
		return err
	})
	if ended != nil {
		return ended
	}
	if err == nil && !s.Gateway.alive() {
		return errors.New("another program answers on the port")
	}
	return err
}

func (s *Stack) gatewayAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+"/health", nil)
	if err != nil {
		return err
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", request.URL, response.Status)
	}
	return nil
}

// httpClient keeps no connection, and so no goroutine, after a call.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// NewBucket makes a versioned bucket, with Object Lock or without, unless it is
// there already.
func (s *Stack) NewBucket(ctx context.Context, name string, lock bool) error {
	client := s.S3()
	_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock})
	if owned := new(types.BucketAlreadyOwnedByYou); err != nil && !errors.As(err, &owned) {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	if _, err := client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket:                  &name,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		return fmt.Errorf("make bucket %s: %w", name, err)
	}
	return nil
}
