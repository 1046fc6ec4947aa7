"""SpecForge's own rollouts and trainers over one directory, killed on the way: benchmarks/specforge_run.py."""
