#!/bin/sh
# The program must fail, and a sanitizer must be what stopped it: PROGRAM overflow|undefined.
set -u
report=$("$1" 2>&1) && { echo "$1 did not fail"; echo "0 passed, 1 failed"; exit 1; }
case "$2:$report" in
overflow:*heap-buffer-overflow*|undefined:*"signed integer overflow"*) echo "1 passed, 0 failed" ;;
*) echo "$report"; echo "0 passed, 1 failed"; exit 1 ;;
esac
