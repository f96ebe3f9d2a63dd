#!/bin/sh
# Redis reads its users again; the connections of users that are gone end. Arguments: its port, and users whose
# connections end, too, as their passwords have changed. The operator's password comes on standard input, so that it
# stands in no environment; several, one per line, when it is not known which one Redis knows.
port=$1
shift
passwords=$(cat)
ask() {
  timeout 5 redis-cli -h 127.0.0.1 -p "$port" --tls --cacert /etc/muster/pki/ca.crt \
    --cert /etc/muster/pki/host.crt --key /etc/muster/pki/host.key --user operator "$@" 2>&1
}
for _ in 1 2 3 4 5 6 7 8 9 10; do
  for REDISCLI_AUTH in $passwords; do
    export REDISCLI_AUTH
    answer=$(ask acl load)
    test "$answer" = OK || continue
    for user; do
      answer=$(ask client kill user "$user")
      test "$answer" -ge 0 2>/dev/null || { echo "$answer"; exit 1; }
    done
    exit 0
  done
  sleep 0.5
done
echo "$answer"
exit 1
