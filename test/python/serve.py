"""Runs scripts of this folder one after another in this process, since their imports take seconds.

A line of standard input is a script and its arguments, as a list in JSON; a line of standard output is its traceback, or null.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path

answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    sys.argv = json.loads(line)
    error = None
    try:
        runpy.run_path(str(Path(__file__).parent / sys.argv[0]), run_name='__main__')
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps(error), file=answers, flush=True)
