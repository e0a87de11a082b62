package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tool returns a program of cmd/devstack/tools, which it builds if need be. The
// variable DEVSTACK_NAME may say where it is.
func Tool(ctx context.Context, name, pkg string) (string, error) {
	variable := "DEVSTACK_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if exe := os.Getenv(variable); exe != "" {
		return filepath.EvalSymlinks(exe)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", fmt.Errorf("find %s: %w, and %s is not set", name, err, variable)
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
	exe := filepath.Join(tools, name)
	if !exists(exe) {
		build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "cmd", "devstack", "tools"), "-trimpath", "-o", exe, pkg)
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
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
