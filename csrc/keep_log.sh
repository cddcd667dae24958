#!/bin/sh
# Runs a compiler, and keeps what it prints beside the object file, OBJECT.log: of each kernel, the registers it takes
# and the bytes it spills. A build stays silent, but for warnings, and for everything where the compiler fails.
log=
for word; do
  [ "$before" = -o ] && log=$word.log
  before=$word
done
[ -n "$log" ] || exec "$@"
"$@" >"$log" 2>&1
status=$?
if [ $status -ne 0 ]; then cat "$log" >&2; else grep -i warning "$log" >&2; fi
exit $status
