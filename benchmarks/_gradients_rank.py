"""One rank of benchmarks/gradients.py."""

import sys

from gradients import rank_main

rank_main(sys.argv[1], sys.argv[2])
