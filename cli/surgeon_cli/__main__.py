"""`python -m surgeon_cli`: the command without its script."""

from surgeon_cli.main import run

if __name__ == "__main__":
    run()
