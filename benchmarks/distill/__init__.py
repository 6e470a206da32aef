"""The `distill` workload: how much of a text a few virtual tokens keep, beside the text and shorter texts."""
