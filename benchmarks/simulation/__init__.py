"""A shared filesystem that lies as NFS does: seeded, deterministic, under the real queue code."""
