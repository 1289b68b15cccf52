"""Other engines on the same prompts: one script each, run by the Python of that engine's own environment.

A script reads a job (see `bench_peers.run_peer`) and writes {"seconds", "load_seconds", "answers"}: weights
are loaded and one short request has been answered before the clock starts.
"""
