"""Measure what a mount can do for a queue, by real processes in a scratch directory, and say it in plain words.

diagnosis.py     runs everything in order and judges           notes.py      what the mount's options mean
findings.py      what was found out, and the advice            advice.py     settings that suit what was found
probes.py        what one process can find out                 costs.py      what each file operation costs
races.py         what it takes several processes to find out
peer.py          starts those processes and talks to them      peer_tasks.py   what they can do
clocks.py        compares times that they read                 scratch.py      the directory where all of it happens
sides/           tries the promises between two mounts or two nodes
"""
