"""`python -m dsno`: the command line, also of `accelerate launch -m dsno`."""

from dsno.cli import main

main()
