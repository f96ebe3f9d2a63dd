#!/bin/sh
# Whether Redis takes this configuration: it starts with it, beside its data and its addresses, and is asked.
sed '/^dir /d' /etc/muster/redis.conf >/tmp/redis.conf
redis-server /tmp/redis.conf --bind 127.0.0.1 --dir /tmp --appendonly no --logfile /tmp/log --daemonize yes || exit 1
for _ in 1 2 3 4 5 6 7 8 9 10; do
  said=$(sh /etc/muster/healthy.sh "$1") && exit 0
  sleep 0.3
done
tail -n 2 /tmp/log
echo "$said"
exit 1
