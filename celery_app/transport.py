"""Kombu's Redis transport, but for how a worker takes a message: from its queue into what it holds in one step.

Kombu pops with BRPOP and writes down what it holds in a second command: a worker that dies between the two loses the
message, and so does one that a full Redis refuses the second. One script does both here, over all queues by
priority. A script cannot wait, so Redis tells an idle worker when a list that was empty is not (CLIENT TRACKING: once,
to who found it so). Where it does not, and to be sure, the worker asks again after a while.
The same script acknowledges what was finished meanwhile: a task is one round trip of the main process.
Senders and everything else are Kombu's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from time import monotonic, time
from typing import Any, ClassVar

from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from celery_app import lease
from celery_app.config import PRIORITIES, Settings
from celery_app.lease import LEASES

MOST_DONE = 1000
IDLE_LEAST, IDLE_MOST, IDLE_GROWTH = 0.004, 0.1, 1.3
IDLE_WATCHED = 1.0
# Keys: held, its index, the leases, the lists. Arguments: the worker's time, the worker that needs a lease or nothing,
# the tags of what is finished. What is no message at all goes aside, so that the queue goes on. Redis may be full:
# taking frees it. Redis tracks what is read; popping is not.
TAKE = """#!lua flags=allow-oom
if #ARGV > 2 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 3))
  redis.call('HDEL', KEYS[1], unpack(ARGV, 3))
end
if ARGV[2] ~= '' then
  local lease = redis.call('ZSCORE', KEYS[3], ARGV[2])
  if not lease or tonumber(lease) <= tonumber(redis.call('TIME')[1]) then return false end
end
for i = 4, #KEYS do
  local item = redis.call('RPOP', KEYS[i])
  while item do
    local good, message = pcall(cjson.decode, item)
    local properties = good and type(message) == 'table' and message.properties
    local info = type(properties) == 'table' and properties.delivery_info
    if type(info) == 'table' and type(properties.delivery_tag) == 'string' and type(info.routing_key) == 'string' then
      local exchange = type(info.exchange) == 'string' and info.exchange or ''
      redis.call('ZADD', KEYS[2], ARGV[1], properties.delivery_tag)
      redis.call('HSET', KEYS[1], properties.delivery_tag,
        '[' .. item .. ',' .. cjson.encode(exchange) .. ',' .. cjson.encode(info.routing_key) .. ']')
      return {KEYS[i], item}
    end
    redis.call('LPUSH', 'muster:garbage', item)
    item = redis.call('RPOP', KEYS[i])
  end
end
for i = 4, #KEYS do redis.call('EXISTS', KEYS[i]) end
return false
"""
TAKE_SHA = hashlib.sha1(TAKE.encode()).hexdigest()


class Progress:
    """Of this process, beyond the life of its connections."""

    # What the supervisor watches: how many messages were taken.
    taken = 0
    # Tags of what is finished and, as far as we know, still held.
    done: ClassVar[dict[str, None]] = {}
    # For tests: the loop goes on and takes nothing, as after some reconnects.
    deaf = False


def forget(done: Iterable[str]) -> None:
    for tag in done:
        Progress.done.pop(tag, None)


class QoS(stock.QoS):
    """What was taken by the script is written down already, and it outlives its connection."""

    restore_at_shutdown = False

    def append(self, message: Any, delivery_tag: str) -> None:
        super(stock.QoS, self).append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> Any:
        Progress.done[delivery_tag] = None
        if self.channel.connection is None or not self.channel.active_queues:
            # Nothing is taken here any more; or the task ran on while its connection was lost.
            self.settle()
        return super(stock.QoS, self).ack(delivery_tag)

    def settle(self) -> None:
        """Acknowledge without taking."""
        done = tuple(Progress.done)
        with lease.connect(Settings.read()) as client:
            client.pipeline().zrem(self.unacked_index_key, *done).hdel(self.unacked_key, *done).execute()
        forget(done)

    def restore_visible(self, *arguments: Any, **options: Any) -> None:
        # A full broker refuses the lock of it; the next round does.
        with suppress(OutOfMemoryError):
            super().restore_visible(*arguments, **options)

    def reject(self, delivery_tag: str, requeue: bool = False) -> Any:
        if not requeue:
            return self.ack(delivery_tag)
        with lease.connect(Settings.read()) as client:
            held = client.hget(self.unacked_key, delivery_tag)
            if held:
                lease.give_back(client, self.unacked_key, delivery_tag, held, died=True)
        return super(stock.QoS, self).ack(delivery_tag)


class Channel(stock.Channel):
    """Asks by script instead of BRPOP, on the same connection and at the same places of the event loop."""

    QoS = QoS
    fence = ""
    from_transport_options = (*stock.Channel.from_transport_options, "fence")
    _known = False
    _idle = 0.0
    _not_before = 0.0
    _told: tuple[str, ...] = ()
    # The socket for which Redis was asked to tell, and whether it does.
    _watched: Any = None
    _telling = False

    def _queue_bind(self, *binding: Any) -> None:
        # Taking needs none, and a worker must be able to start when the broker is full: who else would empty it?
        with suppress(OutOfMemoryError):
            super()._queue_bind(*binding)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if Progress.deaf or (monotonic() < self._not_before and not Progress.done):
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [self._q_for_pri(queue, priority) for priority in PRIORITIES.values() for queue in queues]
        keys = [self.unacked_key, self.unacked_index_key, LEASES, *lists]
        command = ("EVALSHA", TAKE_SHA) if self._known else ("EVAL", TAKE)
        if self.client.connection._sock is not self._watched:
            self._watch(self.client.connection)
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self._told = tuple(islice(Progress.done, MOST_DONE))
        self.client.connection.send_command(*command, len(keys), *keys, time(), self.fence, *self._told)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "EVALSHA", **options)
            except NoScriptError:
                self._known = False
                return self._pause(IDLE_LEAST)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._known = True
        # Not by their number: a task of a former connection may have settled them meanwhile.
        forget(self._told)
        if not answer:
            if not self._telling:
                return self._pause(min(max(self._idle * IDLE_GROWTH, IDLE_LEAST), IDLE_MOST))
            self._pause(IDLE_WATCHED)
            return self._told_of_more()
        self._idle = self._not_before = 0.0
        Progress.taken += 1
        queue = bytes_to_str(answer[0]).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        self.connection._deliver(loads(bytes_to_str(answer[1])), queue)
        return True

    def _watch(self, connection: Any) -> None:
        try:
            connection.send_command("CLIENT", "TRACKING", "ON", "NOLOOP")
            connection.read_response()
            self._telling = True
        except ResponseError:
            self._telling = False
        self._watched = connection._sock

    def _told_of_more(self) -> bool:
        """Read what Redis says unasked; the answer to a question is not among it."""
        while self.client.connection.can_read(0):
            self.client.connection.read_response(push_request=True)
            self._not_before = 0.0
        return False

    def _pause(self, seconds: float) -> bool:
        self._idle = seconds
        self._not_before = monotonic() + seconds
        loop = getattr(self.connection, "loop", None)
        if loop is not None:
            # Wakes the loop, whose tick asks again.
            loop.call_later(seconds, _nothing)
        return False


def _nothing() -> None:
    pass


class Poller(stock.MultiChannelPoller):
    """Without an event loop it waits no longer than until a channel asks again."""

    def on_poll_start(self) -> None:
        super().on_poll_start()
        for channel in self._channels:
            # It cannot take now, so nothing goes with that.
            if Progress.done and channel.active_queues and not channel._in_poll:
                channel.qos.settle()

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind == "BRPOP" and channel is not None and not channel._in_poll:
            return channel._told_of_more()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        return super().get(callback, min(timeout, IDLE_MOST) if timeout is not None else IDLE_MOST)


class Transport(stock.Transport):
    """Registered as `muster://`."""

    Channel = Channel
    loop: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.loop = loop
        super().register_with_event_loop(connection, loop)
