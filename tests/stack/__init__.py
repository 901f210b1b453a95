"""Everything Kopsline needs, on one machine and on loopback: `python -m stack up --help`.

Only the standard library is imported here: one of the processes runs in another virtual environment.
"""
