"""The sender: as any application, but it goes on sending a task under the same id until the broker has it."""

import select
import sys
import time
import uuid

from celery_app import app

from . import line


def main() -> None:
    count, seconds, rate = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    stoppable = sys.argv[4:] == ["stoppable"]
    start = time.monotonic()
    for number in range(count):
        # It was closed.
        if stoppable and select.select([sys.stdin], [], [], 0)[0]:
            break
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        task = str(uuid.uuid4())
        sys.stdout.write(line("enqueued", task))
        sys.stdout.flush()
        while True:
            try:
                app.send_task("drill.step", [seconds], task_id=task, queue="default")
                break
            except Exception as error:
                print(f"sent again: {error}", file=sys.stderr)
                time.sleep(0.5)


main()
