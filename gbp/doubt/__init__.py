"""Doubt: measures of whether a map says what it seems to say.

Maps, images and an `Explainer` come in; numbers come out, and a `Sanity`.  It may import what gbp
exports, what makes results and pictures, the methods, and the importer, whose weights it randomises.
"""
