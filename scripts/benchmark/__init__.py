"""What recording costs, and reading: `scripts/bench`, see docs/benchmarks.md."""
