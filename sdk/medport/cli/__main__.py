"""``python -m medport.cli``: the same as ``medport``, where the script is not on the path."""

from medport.cli import main

main()
