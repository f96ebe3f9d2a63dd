#!/bin/sh
# Asks as a client does, with TLS and a login. Redis refuses PING while it reads its log and when it cannot write it.
REDISCLI_AUTH=$(cat /etc/muster/exporter_password)
export REDISCLI_AUTH
answer=$(timeout 5 redis-cli -h 127.0.0.1 -p "$1" --tls --cacert /etc/muster/pki/ca.crt \
  --cert /etc/muster/pki/host.crt --key /etc/muster/pki/host.key --user exporter ping 2>&1)
echo "$answer"
test "$answer" = PONG
