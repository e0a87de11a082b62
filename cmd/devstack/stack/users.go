package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3User is a user of the S3 server beside its root.
type S3User struct {
	Key, Secret string
}

// NewS3User makes a user who has no right but those that policies of buckets give.
func (s *Stack) NewS3User(ctx context.Context) (S3User, error) {
	user := S3User{random(8), random(20)}
	return user, s.addUser(ctx, user, "user")
}

// addUser makes a user unless it is there. One in role userplus may make buckets, and
// has every right on them as their owner, but that of bypassing a lock: root alone
// has it by itself.
func (s *Stack) addUser(ctx context.Context, user S3User, role string) error {
	body, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"Account"`
		Access  string
		Secret  string
		Role    string
	}{Access: user.Key, Secret: user.Secret, Role: role})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, s.Endpoint()+"/create-user", bytes.NewReader(body))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	request.Header.Set("X-Amz-Content-Sha256", hash)
	root := aws.Credentials{AccessKeyID: s.RootKey, SecretAccessKey: s.RootSecret}
	if err := v4.NewSigner().SignHTTP(ctx, root, request, hash, "s3", Region, time.Now()); err != nil {
		return err
	}
	answer, err := httpClient.Do(request)
	if err != nil {
		return fmt.Errorf("make S3 user: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode < 300 || answer.StatusCode == http.StatusConflict { // there already
		return err
	}
	return fmt.Errorf("make S3 user: %s: %s", answer.Status, text)
}

// S3As is a client with the rights of a user.
func (s *Stack) S3As(user S3User) *s3.Client {
	return s3.New(s3.Options{
		Region:       Region,
		BaseEndpoint: aws.String(s.Endpoint()),
		Credentials:  credentials.NewStaticCredentialsProvider(user.Key, user.Secret, ""),
		UsePathStyle: true,
		HTTPClient:   httpClient,
	})
}

// S3 is a client of the user that Env names, who owns every bucket of the stack.
func (s *Stack) S3() *s3.Client { return s.S3As(S3User{s.AccessKey, s.SecretKey}) }

// S3Root is a client with all rights on the S3 server.
func (s *Stack) S3Root() *s3.Client { return s.S3As(S3User{s.RootKey, s.RootSecret}) }
