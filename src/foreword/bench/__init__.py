"""Benchmarks: what Foreword does beside its peers, measured in one run on one machine, as ratios."""
