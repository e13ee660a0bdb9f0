"""The result: maps and scores, with all that is said and drawn of them.

Maps, scores and images come in; an `Attribution` comes out, a sequence of `Sample`s, which become figures and
files.  It may import questions, the rules, pictures, files, errors and the version.
"""
