"""Generated inputs and faults for every command: `make fuzz`, or `python -m fuzz --help` with tests/ on the path.

A generator makes cases from a seed: it damages a fresh copy of a template and says which commands to run on it. A
worker runs them in its own process through the command line's entry point; what comes out is judged (`judging`), and
what was accepted is read again by other libraries (`independent`).
"""
