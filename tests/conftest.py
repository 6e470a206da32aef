"""Settings that must stand before torch loads."""

import os

# Tiny models on shared cores: spinning threads would only take time from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The suite runs one worker a core, so a worker and the processes that it starts keep to one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
