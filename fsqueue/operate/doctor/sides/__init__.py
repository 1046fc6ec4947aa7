"""Try the promises of a queue between two sides: two mounts of one filesystem, or two nodes.

verify.py   starts both sides, runs the checks one by one and reports    verdict.py   what a check says
sides.py    the two sides, as a check uses them
locks.py    flock, and what is read under it                             renames.py   who wins; what a 0 is worth
caches.py   how long old names and stamps live; clocks                   leases.py    expiry, fencing, heartbeats
queues.py   order, deduplication, how soon a put is seen                 torture.py   nothing lost, nothing twice
tasks.py    what each side's process can do                              churn.py     its share of the torture
"""
