"""Runs scripts one after another in this process, since their imports take seconds.

A line of standard input is a script, by its name in this folder or by its path, its arguments, and the folder to run it in or null,
as a list in JSON; a line of standard output is what it printed and its traceback, or null.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path

here = Path(__file__).parent
warnings.simplefilter('ignore')
for line in sys.stdin:
    (script, *sys.argv[1:]), folder = json.loads(line)
    sys.argv[0] = script
    os.chdir(folder or here)
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(here / script), run_name='__main__')
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), flush=True)
