"""`python -m dataflex_tools` is `flextools`, for launchers that start modules."""

from dataflex_tools.cli import main

main()
