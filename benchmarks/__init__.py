"""How fast, and in how much memory: `python -m benchmarks`. Each claim is measured beside what it is compared with."""
