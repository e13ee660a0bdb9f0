"""Image files become arrays, and maps become pictures.

Image files, presets and maps come in; PIL images, input arrays for networks, and files come out.  This folder
knows no models.  It may import errors and files.
"""
