import sys
from pathlib import Path


def run(**commands):
    """The command line of the scripts, `COMMAND NUMBER... FOLDER`: calls the function of that name."""
    name, *numbers, folder = sys.argv[1:]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    commands[name](*map(int, numbers), folder)
