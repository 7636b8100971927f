# For the client tests. AVHDX_PLUGIN is the plugin, AVHDX the command. A test works in $work, serves with `serve`, and says
# with `check` what must hold. Programs that are missing: a skip, or a failure where CI is set.
set -uo pipefail
plugin=${AVHDX_PLUGIN:?the path of nbdkit-avhdx-plugin.so}
source=$(cd "$(dirname "$0")/.." && pwd)
avhdx=${AVHDX:-$source/target/release/avhdx}
work=$(mktemp -d "${TMPDIR:-/tmp}/avhdx clients.XX""XX")
socket=$work/nbd.sock
uri="nbd+unix:///?socket=${socket// /%20}"
server=
passed=0 failed=0

finish() {
    local jobs
    jobs=$(jobs -p)
    # shellcheck disable=SC2086
    [ -z "$jobs" ] || kill $jobs 2>/dev/null
    wait 2>/dev/null
    cd /
    rm -rf "$work"
}
trap finish EXIT
cd "$work" || exit 99

skip() {
    echo "SKIPPED: $*"
    [ -z "${CI:-}" ] || { echo "0 passed, 1 failed"; exit 1; }
    exit 77
}

# needs PROGRAM...
needs() {
    local program
    for program in nbdkit "$@"; do
        command -v "$program" >/dev/null 2>&1 || skip "$program is not installed"
    done
    [ -x "$avhdx" ] || (cd "$source" && cargo build --quiet --release --locked -p avhdx-cli) || skip "avhdx is not built"
}

# check NAME COMMAND...: the command must succeed.
check() {
    local name=$1
    shift
    if "$@" >"$work/.out" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "not so: $name"
        head -c 4000 "$work/.out"
    fi
}

# refused NAME TEXT COMMAND...: the command must fail and say TEXT.
refused() {
    local name=$1 text=$2
    shift 2
    if "$@" >"$work/.out" 2>&1; then
        failed=$((failed + 1))
        echo "not refused: $name"
    elif [ -z "$text" ] || grep -qF -- "$text" "$work/.out"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "refused without \"$text\": $name"
        head -c 4000 "$work/.out"
    fi
}

# serve ARGUMENT...: nbdkit with the plugin on $socket.
serve() {
    rm -f "$socket"
    nbdkit --foreground --unix "$socket" "$@" 2>>"$work/nbdkit.log" 9>&- &
    server=$!
    local try
    for try in $(seq 100); do
        [ -S "$socket" ] && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "nbdkit did not come up:"
    cat "$work/nbdkit.log"
    failed=$((failed + 1))
}

stop() {
    kill "$server" && wait "$server"
    server=
}

# hold: a connection that stays, so that the disk stays open, until release.
hold() {
    [ -p holding ] || mkfifo holding
    qemu-io -f raw "$uri" <holding >/dev/null 2>&1 &
    holder=$!
    exec 9>holding
    # Open for certain once it has answered.
    echo 'read 0 512' >&9
}
release() {
    exec 9>&-
    wait "$holder"
}

# sum LEAF [OPTION...]: sha256 of what the disk holds.
sum() { "$avhdx" read "$@" | sha256sum; }

report() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}
