"""The history of a queue's calls, and the checker that simulation, soak and tests share."""
