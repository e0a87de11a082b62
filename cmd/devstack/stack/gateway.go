package stack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// Region is what the S3 server calls its region.
	Region = "us-east-1"

	gatewayModule = "github.com/versity/versitygw/cmd/versitygw"
)

var gatewaySignals = signals{kind: syscall.SIGTERM, hard: syscall.SIGKILL, patience: 10 * time.Second}

// findGateway returns the S3 server's program and builds it if need be.
func findGateway(ctx context.Context) (string, error) {
	if exe := os.Getenv("DEVSTACK_VERSITYGW"); exe != "" {
		return filepath.EvalSymlinks(exe)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", fmt.Errorf("find versitygw: %w, and DEVSTACK_VERSITYGW is not set", err)
	}
	tools := filepath.Join(root, "bin", "tools")
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return "", err
	}
	// Several tests may want to build it at once.
	unlock, err := lock(ctx, tools)
	if err != nil {
		return "", err
	}
	defer unlock()
	exe := filepath.Join(tools, "versitygw")
	if !exists(exe) {
		build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "cmd", "devstack", "tools"), "-trimpath", "-o", exe, gatewayModule)
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build versitygw: %w: %s", err, out)
		}
	}
	return filepath.EvalSymlinks(exe)
}

// moduleRoot is the folder of this module, as seen from the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for from := dir; ; dir = filepath.Dir(dir) {
		if exists(filepath.Join(dir, "cmd", "devstack", "tools", "go.mod")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is outside of the repository", from)
		}
	}
}

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
	exe, err := findGateway(ctx)
	if err != nil {
		return err
	}
	dir := s.path("s3")
	objects, versions, sidecar := filepath.Join(dir, "objects"), filepath.Join(dir, "versions"), filepath.Join(dir, "sidecar")
	for _, dir := range []string{objects, versions} {
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
	env := []string{"PATH=/usr/bin:/bin", "ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey}
	log := filepath.Join(dir, "versitygw.log")

	// Another program may take the port between the choice and the start.
	for attempt := 1; ; attempt++ {
		if s.S3Port, err = freePort(s.S3Port); err != nil {
			return err
		}
		args := []string{"--quiet", "--health", "/health", "--port", strings.TrimPrefix(s.Endpoint(), "http://"), "posix", "--versioning-dir", versions}
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

// S3 is a client with all rights on the stack's S3 server.
func (s *Stack) S3() *s3.Client {
	return s3.New(s3.Options{
		Region:       Region,
		BaseEndpoint: aws.String(s.Endpoint()),
		Credentials:  credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		UsePathStyle: true,
		HTTPClient:   httpClient,
	})
}

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
