"""What a mount can do for a queue: measured by real processes in a scratch directory, and put in plain words.

diagnosis.py     runs everything in order and judges           notes.py    what the mount's options mean
probes.py        what one process can find out                 advice.py   settings that suit what was found
races.py         what it takes several processes to find out   costs.py    what each file operation costs
peers.py         starts those processes and talks to them      peer_tasks.py, queue_tasks.py   what they can do
"""
