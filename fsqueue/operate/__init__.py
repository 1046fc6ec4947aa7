"""For people: look at a queue, move refs, mend it."""
