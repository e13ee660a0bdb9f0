"""The command line, one file a command.

In come arguments, out come printed tables, pictures and an exit code.  Whatever it can do the library can do.
May import everything; what is slow to import is imported inside the command that needs it.
"""
