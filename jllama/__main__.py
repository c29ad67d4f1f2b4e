"""`python -m jllama COMMAND …`, the same as `jllama COMMAND …`."""

from jllama.cli.main import main

main()
