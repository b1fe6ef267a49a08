#!/usr/bin/env bash
# The page's tests: run.sh FOLDER [TEST...], where FOLDER is where npm may put what they need. IMAGE_CHAT names the
# program that serves the page; without it ../mock_server.mjs does. CHROMIUM names the browser.
set -euo pipefail
here=$(cd "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
modules=$(cd "$1" && pwd)
shift
skip() { echo "skipped: $*"; exit 77; }

command -v node >/dev/null || skip "node is not installed (apt: nodejs)"
command -v npm >/dev/null || skip "npm is not installed"
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || skip "node $(node --version) is older than 20"
export CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v google-chrome || true)}
[ -x "$CHROMIUM" ] || skip "chromium is not installed (apt: chromium)"

if ! cmp -s "$here/package-lock.json" "$modules/installed.json"; then
    cp "$here/package.json" "$here/package-lock.json" "$modules"
    (cd "$modules" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1 --fetch-timeout=60000) ||
        skip "npm could not install what the tests need (above): no network?"
    cp "$here/package-lock.json" "$modules/installed.json"
fi
export LV_NODE_MODULES=$modules/node_modules
[ $# -gt 0 ] || set -- "$here"/*.test.mjs
exec node --test --test-concurrency=1 --test-reporter=spec "$@"
