"""A report: one HTML page of many images, with their maps, that needs no network.

A model and images come in; a file comes out.  `make.py` explains the images chunk by chunk and writes what
the page shows; `page.html` is the page.  It may import what gbp exports, methods, result, rules and
pictures.
"""
