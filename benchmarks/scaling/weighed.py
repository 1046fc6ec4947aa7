"""Run a command, and print what it took: a line of JSON with seconds, cpu_s, peak_kib and the exit code.

    python benchmarks/scaling/weighed.py COMMAND...

A process begins with the peak memory of the one that starts it, since they share it until the exec. So a small one
stands between: it imports next to nothing.
"""

import os
import sys
import time


def main(command: list[str]) -> None:
    started = time.perf_counter()
    to_devnull = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=to_devnull)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    cpu_s = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    print(f'{{"seconds": {seconds}, "cpu_s": {cpu_s}, "peak_kib": {usage.ru_maxrss}, "code": {code}}}')


if __name__ == "__main__":
    main(sys.argv[1:])
