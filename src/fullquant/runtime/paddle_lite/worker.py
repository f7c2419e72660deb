"""Runs one program in Paddle Lite's x86 interpreter. For the Python that has paddlelite: it imports no fullquant.

    python worker.py MODEL PARAMS THREADS INT8 [PASS ...]

INT8 is 1 where int8 kernels may be picked; PASS names passes of the optimiser to leave out. Then, for each run, a line
of JSON, the shape of the input, and its float32 elements on stdin, and the same for every output on stdout, behind a
line with their number. What Lite prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

import numpy


def predictor(model: str, params: str, threads: int, int8: bool, discarded: list[str]) -> Any:
    """The program, optimised for this processor."""
    from paddlelite.lite import CxxConfig, Place, PrecisionType, TargetType, create_paddle_predictor

    config = CxxConfig()
    config.set_model_file(model)
    config.set_param_file(params)
    config.set_threads(threads)
    for name in discarded:
        config.add_discarded_pass(name)
    places = [Place(TargetType.X86, PrecisionType.INT8)] if int8 else []
    places += [Place(TargetType.X86, PrecisionType.FP32), Place(TargetType.Host, PrecisionType.FP32)]
    config.set_valid_places(places)
    return create_paddle_predictor(config)


def serve(made: Any, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers one input after the other until stdin ends."""
    while True:
        line = source.readline()
        if not line:
            return
        shape = json.loads(line.decode())
        count = 1
        for size in shape:
            count *= size
        array = numpy.frombuffer(source.read(4 * count), dtype=numpy.float32)
        tensor = made.get_input(0)
        tensor.resize(shape)
        tensor.set_float_data(array)
        made.run()
        outputs = [
            numpy.array(made.get_output(i).numpy(), dtype=numpy.float32) for i in range(len(made.get_output_names()))
        ]
        sink.write(json.dumps(len(outputs)).encode() + b"\n")
        for output in outputs:
            sink.write(json.dumps(list(output.shape)).encode() + b"\n")
            sink.write(numpy.ascontiguousarray(output).tobytes())
        sink.flush()


def main() -> None:
    """The whole life of the process."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Lite's own lines
    model, params, threads, int8 = sys.argv[1:5]
    made = predictor(model, params, int(threads), int8 == "1", sys.argv[5:])
    sink.write(b"ready\n")
    sink.flush()
    serve(made, sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
