"""Benchmarks: each prints ratios to something that a user could pick instead, from one run."""
