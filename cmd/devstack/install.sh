#!/usr/bin/env bash
# Installs the Debian packages that the stack and the tests need and that are not there yet. Exit status 2 where
# it may not install: it names the packages then.
set -euo pipefail

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]; }
fail() { echo "$*" >&2; exit 2; }

command -v apt-get >/dev/null || fail "not a Debian machine: install PostgreSQL 15 to 18 with pgaudit, pgtap and plpgsql_check, its contrib modules, pgbouncer, zstd, pg_prove and gcc by hand"

# The newest PostgreSQL that is there, as the stack chooses it, else the one that Debian offers.
major=
for m in 18 17 16 15; do
  if [ -x "/usr/lib/postgresql/$m/bin/initdb" ]; then major=$m; break; fi
done

wanted() {
  echo pgbouncer age jq zstd libtap-parser-sourcehandler-pgtap-perl
  # The race detector needs a C compiler.
  command -v gcc >/dev/null || echo gcc libc6-dev
  # Whoever sets DEVSTACK_PGBIN brings a PostgreSQL with its extensions along.
  if [ -z "${DEVSTACK_PGBIN:-}" ]; then
    local pg="postgresql-${major:-?}"
    echo "$pg" "$pg-pgaudit" "$pg-pgtap" "$pg-plpgsql-check" # Debian's package has the contrib modules in it
  fi
}

offered() { apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1; }

missing() {
  local p
  for p in $(wanted); do installed "$p" || echo "$p"; done
}

[ -n "$(missing)" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  major=${major:-$(offered)}
  major=${major:-15}
  fail "missing Debian packages and no right to install them; as root: apt-get install" $(missing)
fi
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

apt update
if [ -z "$major" ]; then
  major=$(offered)
  [ -n "$major" ] || fail "this Debian offers no PostgreSQL"
fi
mapfile -t packages < <(missing)
echo "installing ${packages[*]}" >&2
apt install -y --no-install-recommends "${packages[@]}" >&2
[ -z "$(missing)" ] || fail "still missing: $(missing | tr '\n' ' ')"
