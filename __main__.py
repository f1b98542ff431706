"""`python -m efficientface` is `fer`."""

from efficientface.cli import main

main()
