"""Sleeps as long as it is told, and says since when it has."""

import sys
import time

from ray_jobs import outcome

if __name__ == "__main__":
    began, seconds = time.time(), float(sys.argv[1])
    while (passed := time.time() - began) < seconds:
        outcome.progress(passed, seconds)
        time.sleep(1)
    outcome.result(began)
