"""`python -m dsno.cli`, which is what `accelerate launch -m` runs."""

from dsno.cli import main

main()
