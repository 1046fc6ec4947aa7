"""Power cuts: what may be on the disk afterwards, enumerated, and what the queue makes of it."""
