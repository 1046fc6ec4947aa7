"""The parts of mounts.py: how each filesystem is mounted twice, the checks and the torture over both, the rows.

kinds.py         every filesystem by its name            inside.py    one filesystem, within its namespaces
local.py         images on loop devices, overlay, tmpfs  looks.py     the checks between the two mounts, stale names
layers.py        one directory through FUSE layers       rate.py      refs a second beside the first row's
servers.py       servers on loopback, two clients        torture.py   processes on both mounts, killed at random
objects.py       object stores mounted as directories    worker.py    what such a process does
namespaces.py    namespaces of its own, a second node    table.py     the rows
tools.py         programs that run, fail or are missing
"""
