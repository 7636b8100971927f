#!/usr/bin/env bash
# kill -9 of the server in the middle of random writes: the chain opens, is clean, and holds everything flushed.
. "$(dirname "$0")/lib.sh"
killer=$1
needs nbdkit

"$avhdx" create base.vhdx --size 24M --block-size 1M
"$avhdx" checkpoint base.vhdx a.avhdx --block-size 1M
check "50 rounds" env SOCKET="$socket" "$killer" 50 "${SEED:-1}" "$avhdx" base.vhdx a.avhdx -- \
    nbdkit --foreground --unix "$socket" "$plugin" a.avhdx
cat .out | tail -1
report
