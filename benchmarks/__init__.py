"""The commands behind every number in README and docs/benchmarks.md."""
