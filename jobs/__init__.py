"""Stages, their services and the command line."""

import os

# OpenMP threads that wait spin by default. Beside other services on the same cores, training on two threads was then 15 times slower
# than with threads that sleep (273 against 3,970 tokens/s). It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A short spin before sleeping: the next small product often follows at once (7,422 against 5,002 tokens/s on two quiet cores).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
