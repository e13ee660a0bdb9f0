"""The version of gbp, in the only place: the package's metadata is read from here."""

VERSION = "0.2.0"
