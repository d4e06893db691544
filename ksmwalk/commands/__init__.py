"""One module per command of the `ksmwalk` program."""
