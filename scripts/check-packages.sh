#!/usr/bin/env bash
# The promise to robots: `runtime` and `export` need no libtorch, neither to build nor to run, and no database client.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --quiet        # default-members: models, export, runtime
for package in runtime export; do
    if cargo tree --quiet -p "$package" -e normal,build --prefix none | grep -E '^(tch|torch-sys) '; then
        echo "check-packages: $package depends on libtorch (see above); only train and tests may" >&2
        exit 1
    fi
    if cargo tree --quiet -p "$package" -e normal,build --prefix none | grep -E '^(postgres|tokio-postgres|r2d2|rustls) '; then
        echo "check-packages: $package has a database client (see above); only runtime's feature \`postgres\` may bring one" >&2
        exit 1
    fi
    if ldd "target/release/$package" | grep -i torch; then
        echo "check-packages: target/release/$package links libtorch (see above)" >&2
        exit 1
    fi
    printf '%s: no libtorch, no database client, %.1f MB\n' "$package" "$(($(stat -c %s "target/release/$package") / 100000))e-1"
done
