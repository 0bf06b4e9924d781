"""The command line: one file a verb, built on the public names of `surgeon` alone, with no logic of its own."""
