#!/bin/sh
# Redis reads its users again. Only those who changed or are gone lose their connections. The operator's password
# comes on standard input, so that it stands in no environment.
read -r REDISCLI_AUTH
export REDISCLI_AUTH
for _ in 1 2 3 4 5 6 7 8 9 10; do
  answer=$(timeout 5 redis-cli -h 127.0.0.1 -p "$1" --tls --cacert /etc/muster/pki/ca.crt \
    --cert /etc/muster/pki/host.crt --key /etc/muster/pki/host.key --user operator acl load 2>&1)
  test "$answer" = OK && exit 0
  sleep 0.5
done
echo "$answer"
exit 1
