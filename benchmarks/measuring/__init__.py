"""The tools of every measurement: where it runs, worker processes, interleaved rounds, tables and charts."""
