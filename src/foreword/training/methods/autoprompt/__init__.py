"""AutoPrompt: a gradient-guided search for trigger tokens (Shin et al. 2020, arXiv:2010.15980)."""
