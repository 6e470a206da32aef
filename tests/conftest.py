"""Settings that must stand before torch loads."""

import os

# Tiny models on shared cores: spinning threads would only take time from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
