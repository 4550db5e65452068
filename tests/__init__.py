import os

# Two cores are shared by several test processes; torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
