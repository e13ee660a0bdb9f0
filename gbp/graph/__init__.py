"""The meaning of a network: `Graph`, `Op`, shapes and windows.

This folder computes nothing and knows no files, devices or memory.  Ops and shapes come in; networks that
other folders read and rewrite come out.  It may import errors and limits.
"""
