"""Benchmarks of Foreword on a user's own model and machine; those beside other software are in `benchmarks/`."""
