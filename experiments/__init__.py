"""Commands, presets, and the pairing of system names with models and guides."""

import os

# Read by OpenMP when torch is imported. Its threads wait by spinning, for milliseconds by default: beside another busy
# process, and with small networks, steps then take seconds. A short spin costs 1 % on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
