"""Commands over whole runs: verify, repair, merge, convert, inspect, selftest."""
