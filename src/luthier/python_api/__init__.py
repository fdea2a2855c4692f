"""The Python API behind `import luthier`: the command line's commands as functions, and finished runs as objects.

Loads no torch: engine work runs in a process of its own, as for the command line.
"""
