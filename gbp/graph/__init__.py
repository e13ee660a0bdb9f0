"""What a network means: `Graph`, `Op`, shapes and windows.

Nothing runs here, and nothing knows of files, devices or memory.  In come ops and shapes, out come networks
that others read and rewrite.  May import errors and limits.
"""
