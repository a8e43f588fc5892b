"""One thread for each test process: two workers with a thread for each core would fight over the cores.

Set before torch is imported, and inherited by the commands that tests start. With one thread, sums are also rounded
in one order wherever the tests run.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
