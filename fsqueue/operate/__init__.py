"""Look at a queue, move its refs, mend it: what people do."""
