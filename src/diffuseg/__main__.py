"""`python -m diffuseg` is the command line."""

from diffuseg.cli import main

main()
