"""The queues that are measured side by side, and the floor below them, behind one interface."""
