#!/usr/bin/env bash
# Runs the examples on chains made for them and compares what comes out, byte for byte: run.sh [DIR [NAME...]]
#
# DIR holds the built examples; "-" or none: they are built here, each by the line in its comment. NAMEs are those to
# run, all if none. AVHDX is the command, AVHDX_BUILD a build directory whose library is used instead of the one
# installed, EXAMPLE_WRAPPER a command the examples are run by, such as "valgrind -q --error-exitcode=99
# --leak-check=full". What is missing is a skip, or a failure where CI is set.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
avhdx=${AVHDX:-$here/../../target/release/avhdx}
root=$(mktemp -d "${TMPDIR:-/tmp}/avhdx examples.XX""XX")
work=$root # of each example its own, beneath
programs=${1:--}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- read-chain backup merge remote-layer
passed=0 failed=0 skipped=0

finish() {
    local jobs
    jobs=$(jobs -p)
    # shellcheck disable=SC2086
    [ -z "$jobs" ] || kill $jobs 2>/dev/null
    wait 2>/dev/null
    cd /
    rm -rf "$root"
}
trap finish EXIT

skip() {
    echo "SKIPPED: $*"
    if [ -n "${CI:-}" ]; then failed=$((failed + 1)); else skipped=$((skipped + 1)); fi
}

bad() {
    failed=$((failed + 1))
    echo "not so: $1"
    [ ! -s "$work/out" ] || head -c 2000 "$work/out"
}

# check NAME COMMAND...: the command must succeed. It runs in a subshell: it may exit.
check() {
    local name=$1
    shift
    if ("$@") >"$work/out" 2>&1; then passed=$((passed + 1)); else bad "$name"; fi
}

# refused STATUS TEXT COMMAND...: the command must end so, and say TEXT.
refused() {
    local wanted=$1 text=$2 status=0
    shift 2
    "$@" >"$work/out" 2>&1 || status=$?
    if [ $status = "$wanted" ] && grep -qF -- "$text" "$work/out"; then
        passed=$((passed + 1))
    else
        bad "$wanted, \"$text\": ${*##*/} ended with $status"
    fi
}

# example NAME ARGUMENT...
example() {
    local name=$1
    shift
    # shellcheck disable=SC2086 # words are what is wanted
    ${EXAMPLE_WRAPPER:-} "$directory/$name" "$@"
}

# data FILE OFFSET LENGTH: the disk at FILE gets random bytes there.
data() { head -c "$3" /dev/urandom | "$avhdx" write "$1" --offset "$2"; }

# raw LEAF OUT: what the disk holds, by the command.
raw() { rm -f "$2" && "$avhdx" convert "$1" "$2" >/dev/null; }

sum() { "$avhdx" read "$1" | sha256sum; }

# crumbs FILE OFFSET: many short pieces of data, so that there are more extents than one call tells of.
crumbs() {
    local i
    for i in $(seq 0 34); do data "$1" $(($2 + i * 20000)) 512 || return; done
}

# chain: base.vhdx <- a.avhdx <- b.avhdx, of different block sizes, with extents of each state; disk.raw is what it
# holds.
chain() {
    "$avhdx" create base.vhdx --size 40M --block-size 1M &&
        data base.vhdx 1M 20M &&
        "$avhdx" checkpoint base.vhdx a.avhdx --block-size 2M &&
        data a.avhdx 5000001 3M &&
        "$avhdx" zero a.avhdx --offset 10M --length 3000000 &&
        "$avhdx" checkpoint a.avhdx b.avhdx --block-size 1M &&
        data b.avhdx 7M 700 &&
        data b.avhdx 38M 2M &&
        data b.avhdx 16M 3M &&
        "$avhdx" discard b.avhdx --offset 17M --length 1M &&
        raw b.avhdx disk.raw
}

# ---- read-chain ----

# The bytes of a disk, from where read-chain says they are: from_extents LISTING OUT
from_extents() {
    local word offset length state layer file_offset
    rm -f "$2"
    while read -r word offset length state _ layer _ file_offset; do
        [ "$word" = extent ] || continue
        truncate -s $((offset + ${length#+})) "$2"
        [ "$state" = data ] || continue
        dd "if=$(sed -n "s/^layer $layer: //p" "$1")" "of=$2" bs=64K conv=notrunc status=none oflag=seek_bytes \
            iflag=skip_bytes,count_bytes skip="$file_offset" count="${length#+}" seek="$offset" || return
    done <"$1"
}

# Each extent begins where the one before ended: contiguous LISTING SIZE
contiguous() { awk -v size="$2" '/^extent/ { if ($2 != end) exit; end = $2 + $3 } END { exit end != size }' "$1"; }

# hex RAW OFFSET LENGTH: as read-chain prints it.
hex() {
    od -Ax -v -tx1 -w16 -j "$2" -N "$3" "$1" | sed -e '$d' -e ':a' -e 's/^\([0-9a-f]\{1,11\}\) /0\1 /' -e 'ta'
}

# prints OFFSET LENGTH: the example prints what disk.raw holds there.
prints() {
    example read-chain b.avhdx "$1" "$2" >listing || return
    grep -v -e '^extent' -e '^layer' -e '^disk' -e '^ ' listing >hex.found
    hex disk.raw "$1" "$2" >hex.wanted
    cmp hex.found hex.wanted
}

# The disk can be read while it is read: a reader that waits for its pipe holds it open.
two_readers() {
    local reader status=0
    mkfifo pipe
    exec 8<>pipe
    example read-chain b.avhdx 0 1000000 >pipe 8<&- &
    reader=$!
    head -c 1000 <&8 >/dev/null
    example read-chain b.avhdx || status=$?
    exec 8<&-
    wait $reader
    return $status
}

test_read_chain() {
    local key value before
    check "a chain" chain
    check "with crumbs" eval 'crumbs b.avhdx 20000000 && raw b.avhdx disk.raw'
    sha256sum base.vhdx a.avhdx b.avhdx >files.sum
    check "it describes the chain" eval 'example read-chain b.avhdx >listing'
    check "three layers" eval 'grep -qF " bytes in 3 layers" listing && [ "$(grep -c "^layer" listing)" = 3 ]'
    "$avhdx" info --json --chain b.avhdx >info.json
    for key in filename data-write-guid parent-linkage virtual-disk-id file-size actual-size block-size; do
        case $key in
            data-write-guid) before="content " ;;
            parent-linkage) before=", on " ;;
            *) before=" " ;;
        esac
        for value in $(sed -n "s/^ *\"$key\": \"*\([^\",]*\)\"*,*$/\1/p" info.json | grep -v null); do
            check "$key is $value" grep -qE -- "$before$value($|[ :,])" listing
        done
    done
    for key in data zero hole unmapped; do check "there are $key extents" grep -q "^extent.* $key" listing; done
    check "more of them than are asked for at once" test "$(grep -c '^extent' listing)" -gt 64
    check "extents without gaps" contiguous listing $((40 * 1024 * 1024))
    check "data of all layers" eval 'for i in 0 1 2; do grep -q "^extent.*data layer $i" listing || exit; done'
    check "bytes are where it says" eval 'from_extents listing extents.raw && cmp extents.raw disk.raw'
    check "a range over two layers" prints 4999900 70000
    check "a range that ends with the disk" prints $((40 * 1024 * 1024 - 20)) 20
    check "one byte" prints 7340033 1
    refused 1 "not all inside the disk" example read-chain b.avhdx 41943040 1
    refused 1 "not all inside the disk" example read-chain b.avhdx 0x27fffff 2
    refused 1 "No such file" example read-chain none.avhdx
    refused 1 "not a VHDX file" example read-chain disk.raw
    check "two readers" two_readers
    mkdir away && mv a.avhdx away
    refused 1 "parent" example read-chain b.avhdx
    mv away/a.avhdx .
    refused 2 "usage" example read-chain
    refused 2 "usage" example read-chain b.avhdx 1M 1
    check "no byte of a file changed" sha256sum --check --quiet files.sum
}

# ---- backup ----

# day N LEAF NEW_LEAF: backs up what LEAF holds, and applies it to backup.raw.
day() {
    raw "$2" "day$1.raw"
    check "backup $1" example backup "$2" "$3" "$1.stream"
    check "apply $1" example backup --apply "$1.stream" backup.raw
    check "backup.raw is the disk of day $1" cmp backup.raw "day$1.raw"
}

# Streams fail as on a full disk.
no_room() { (trap '' XFSZ && ulimit -f 16 && example backup --again "$@"); }

test_backup() {
    "$avhdx" create base.vhdx --size 64M --block-size 2M
    data base.vhdx 3M 20M
    day 0 base.vhdx a.avhdx

    data a.avhdx 10M 1M
    data a.avhdx 33333333 77777
    crumbs a.avhdx 40000000
    "$avhdx" zero a.avhdx --offset 4M --length 2500000
    data a.avhdx 20M 4M
    "$avhdx" discard a.avhdx --offset 20M --length 2M
    day 1 a.avhdx b.avhdx
    check "only what changed" test "$(stat -c %s 1.stream)" -lt 4000000
    data b.avhdx 0 5M
    data b.avhdx 10M 500000
    check "later" example backup --again b.avhdx again.stream
    check "it is the same stream" cmp 1.stream again.stream
    check "applied twice" example backup --apply 1.stream backup.raw
    check "nothing is lost by that" cmp backup.raw day1.raw

    # The chain is kept short: what has been backed up is merged.
    check "merge" "$avhdx" merge a.avhdx
    day 2 b.avhdx c.avhdx
    data c.avhdx 50M 3M
    day 3 c.avhdx d.avhdx

    # A stream cut anywhere is seen, and whole it repairs.
    head -c 5000000 0.stream >cut.stream
    refused 1 "cut short" example backup --apply cut.stream new.raw
    check "no half of a full backup" test ! -e new.raw
    for cut in 1 24 1000000; do
        head -c -$cut 3.stream >cut.stream
        refused 1 "cut short" example backup --apply cut.stream backup.raw
    done
    refused 1 "not a stream" example backup --apply day1.raw backup.raw
    check "whole again" example backup --apply 3.stream backup.raw
    check "repaired" cmp backup.raw day3.raw

    data d.avhdx 1M 1M
    raw d.avhdx now.raw
    refused 1 "exists" example backup --apply 0.stream backup.raw
    refused 1 "No such file" example backup --apply 3.stream none.raw
    refused 1 "exists" example backup d.avhdx e.avhdx 3.stream
    refused 1 "c.avhdx" example backup d.avhdx c.avhdx 4.stream
    refused 1 "File too large" no_room d.avhdx 4.stream
    refused 1 "no layer" example backup --again base.vhdx 4.stream
    refused 2 "usage" example backup d.avhdx e.avhdx
    check "nothing is left of what failed" test ! -e 4.stream -a ! -e e.avhdx
    check "and nothing changed" eval 'raw d.avhdx after.raw && cmp now.raw after.raw'
    for file in *vhdx; do check "$file" "$avhdx" check "$file"; done
}

# ---- merge ----

percents() { tr '\r' '\n' <"$1" | sed -n 's/^ *\([0-9]*\)% of .*/\1/p'; }

test_merge() {
    local job try status=0
    check "a chain" chain
    data b.avhdx 0 24M
    sum b.avhdx >before

    # 24 MiB at 2 MiB a second: it is stopped long before it is done.
    # shellcheck disable=SC2086 # words are what is wanted
    ${EXAMPLE_WRAPPER:-} "$directory/merge" b.avhdx base.vhdx mode=copy,rate=2M >progress 2>errors &
    job=$!
    for try in $(seq 300); do
        [ -z "$(percents progress)" ] || break
        sleep 0.1
    done
    kill -INT $job
    wait $job || status=$?
    check "SIGINT: status $status" test $status = 130
    check "it says what to do" grep -q "run the merge again" errors
    try=$(percents progress | tail -1)
    check "it had begun, not ended: ${try:-0} percent" test "${try:-0}" -gt 0 -a "${try:-0}" -lt 100
    check "an interrupted merge is seen" eval '"$avhdx" info --json --chain b.avhdx | grep -q "\"pending-merge\": true"'
    check "the disk reads the same" eval 'sum b.avhdx | cmp - before'

    check "again" eval 'example merge b.avhdx base.vhdx >progress'
    check "it says so" grep -q '^merged$' progress
    check "up to 100" eval '[ "$(percents progress | tail -1)" = 100 ] && percents progress | sort -nc'
    check "one file is left" test "$(echo *vhdx)" = base.vhdx
    check "the disk reads the same, merged" eval 'sum base.vhdx | cmp - before'
    check "base.vhdx" "$avhdx" check base.vhdx

    rm base.vhdx
    check "a chain" chain
    sum b.avhdx >before
    check "into the parent" example merge b.avhdx
    check "two files are left" test "$(echo *vhdx)" = "a.avhdx base.vhdx"
    check "the disk reads the same, from the parent" eval 'sum a.avhdx | cmp - before'
    "$avhdx" create other.avhdx --parent base.vhdx
    refused 1 "other.avhdx" example merge a.avhdx
    refused 1 "ancestor" example merge a.avhdx other.avhdx
    refused 1 "rate" example merge a.avhdx base.vhdx rate=much
    refused 1 "no parent" example merge base.vhdx
    refused 1 "No such file" example merge none.avhdx
    refused 2 "usage" example merge
    check "still the same" eval 'sum a.avhdx | cmp - before'
}

# ---- remote-layer ----

# serve SOCKET ARGUMENT...: nbdkit.
serve() {
    local socket=$1 try
    shift
    rm -f "$socket"
    nbdkit --foreground --readonly --unix "$work/$socket" "$@" >>nbdkit.log 2>&1 &
    server=$!
    for try in $(seq 100); do
        [ ! -S "$socket" ] || return
        kill -0 $server 2>/dev/null || break
        sleep 0.1
    done
    cp nbdkit.log out
    bad "nbdkit is up"
}

stop() {
    kill $server
    wait $server
}

uri() { echo "nbd+unix:///?socket=${work// /%20}/$1"; }

# same LAYER...: the chain of these holds what disk.raw holds.
same() { example remote-layer "$@" >copy.raw && cmp copy.raw disk.raw; }

test_remote_layer() {
    local server first
    command -v nbdkit >/dev/null || { skip "nbdkit is not installed"; return; }
    check "a chain" chain
    mkdir there && mv base.vhdx there

    serve base --filter=log file there/base.vhdx logfile=requests
    check "the base is there" same b.avhdx a.avhdx "$(uri base)"
    check "on more than one connection" test "$(grep -o 'connection=[0-9]* Read' requests | sort -u | wc -l)" -gt 1
    first=$server
    cp a.avhdx there
    serve a file there/a.avhdx
    check "two layers are there" same b.avhdx "$(uri a)" "$(uri base)"
    stop
    refused 1 "Connection refused" example remote-layer b.avhdx "$(uri a)" "$(uri base)"
    server=$first
    refused 1 "another disk" example remote-layer b.avhdx "$(uri base)"
    refused 1 "No such file" example remote-layer none "$(uri base)"
    refused 2 "usage" example remote-layer
    stop

    # A server that refuses, and one that disconnects on, what is larger than it allows.
    serve base --filter=blocksize-policy file there/base.vhdx blocksize-maximum=64K blocksize-error-policy=error
    check "requests are as small as the server asks" same b.avhdx a.avhdx "$(uri base)"
    stop
    serve base --filter=blocksize-policy file there/base.vhdx blocksize-minimum=512 blocksize-error-policy=error
    refused 1 "not supported" example remote-layer b.avhdx a.avhdx "$(uri base)"
    stop

    # The errno of a failure arrives, from opening and from threads that read.
    serve base --filter=error file there/base.vhdx error-pread=ENOMEM error-pread-rate=100%
    refused 1 "Cannot allocate memory (os error 12)" example remote-layer b.avhdx a.avhdx "$(uri base)"
    stop
    serve base eval get_size="stat -c %s '$work/there/base.vhdx'" pread="
        [ \$4 -lt 16000000 ] || { echo ENOSPC lost >&2; exit 1; }
        dd 'if=$work/there/base.vhdx' bs=64K skip=\$4 count=\$3 iflag=skip_bytes,count_bytes status=none"
    refused 1 "No space left on device (os error 28)" example remote-layer b.avhdx a.avhdx "$(uri base)"
    stop
}

# ---- all of them ----

# by_comment NAME: builds an example as its comment says, in $root/built.
by_comment() {
    local line
    line=$(sed -n 's/^ \* Build with: //p' "$here/$1.c")
    [ -n "$line" ] && mkdir -p "$root/built" && cp "$here/$1.c" "$root/built" && (cd "$root/built" && eval "$line")
}

if [ -n "${AVHDX_BUILD:-}" ]; then
    # What pkg-config prints is split at spaces: links beside the program, whose names have none.
    mkdir "$root/pkgconfig" "$root/built"
    ln -s "$(cd "$here/../../include" && pwd)" "$root/built/include"
    ln -s "$(cd "$AVHDX_BUILD" && pwd)" "$root/built/lib"
    cat >"$root/pkgconfig/avhdx.pc" <<EOF
Name: libavhdx
Description: as built
Version: 1
Cflags: -Iinclude
Libs: -Llib -lavhdx
EOF
    export PKG_CONFIG_PATH="$root/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}" LD_LIBRARY_PATH="$AVHDX_BUILD${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

for name in "$@"; do
    [ -f "$here/$name.c" ] || { bad "there is an example $name"; continue; }
    [ -x "$avhdx" ] || { skip "$name: the avhdx command is not built"; continue; }
    directory=$programs
    [ "$programs" != - ] || directory=$root/built
    if [ "$programs" != - ] && [ ! -x "$programs/$name" ]; then
        skip "$name is not built: what it needs is missing"
        continue
    fi
    if command -v cc >/dev/null && pkg-config --exists avhdx 2>/dev/null; then
        check "$name is built as its comment says" by_comment "$name"
    else
        skip "$name: cc, or pkg-config and its avhdx.pc, is not there to build it as its comment says"
        [ "$programs" != - ] || continue
    fi
    work=$root/$name
    mkdir "$work" && cd "$work" && "test_${name//-/_}"
done

echo "$passed passed, $failed failed"
[ $failed = 0 ] || exit 1
[ $skipped = 0 ] || exit 77
