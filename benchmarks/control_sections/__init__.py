"""The sections of control_plane.py: the ledger, a restart, the loader."""
