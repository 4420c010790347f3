"""What TensorBoard reads of FOLDER, for test/summary/summary.own.test.ts: read_events.py FOLDER JSON_FILE"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

events = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0, "images": 0, "scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
fields = ("min", "max", "num", "sum", "sum_squares", "bucket_limit", "bucket")


def histogram(value):
    return [getattr(value, name) if name[0] != "b" else list(getattr(value, name)) for name in fields]


found = {
    "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "histograms": {
        tag: [[e.step, *histogram(e.histogram_value)] for e in events.Histograms(tag)] for tag in tags["histograms"]
    },
    "images": {
        tag: [[e.step, e.width, e.height, e.encoded_image_string.hex()] for e in events.Images(tag)]
        for tag in tags["images"]
    },
    "texts": {
        tag: [[e.step, tensor_util.make_ndarray(e.tensor_proto).item().decode()] for e in events.Tensors(tag)]
        for tag in tags["tensors"]
    },
}
Path(sys.argv[2]).write_text(json.dumps(found))
