"""`python -m lingact`: the installed command without its script."""

from lingact.cli.command import main

if __name__ == "__main__":
    main()
