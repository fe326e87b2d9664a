"""Models that ship with the project; see the README beside this file."""
