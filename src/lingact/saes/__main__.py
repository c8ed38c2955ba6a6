"""`python -m lingact.saes`: the same as `lingact saes`."""

import sys

from lingact.cli.command import dispatch, leave

if __name__ == "__main__":
    leave(dispatch(["saes", *sys.argv[1:]]))
