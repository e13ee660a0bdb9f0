"""The command line, one file a command.

Arguments come in; printed tables, pictures and an exit code come out.  The library can do all that the
command line can.  It may import everything; modules that are slow to import are imported inside the commands.
"""
