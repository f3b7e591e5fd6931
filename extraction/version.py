"""The version of this program, which every run records.

The metadata of the installed package are made from it, so it is the same where the program runs
without being installed, as on the workers of a pod.
"""

__version__ = "0.1.0"
