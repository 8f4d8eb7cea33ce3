"""Texts per second of ONNX Runtime on the CPU, in f32: the work of `metal-candle bench --texts`.

    python benches/compare/onnx_encode.py MODEL_DIR MODEL.onnx FILE

The file is what make_onnx.py exports. Tokenizing counts, as it does for the others; lines are sorted by length and go in
batches of 32; the mean over a text's tokens gets length 1. The first run warms up. Prints one JSON line.
"""
import argparse, json, statistics, time

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("onnx")
parser.add_argument("file")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = args.threads
session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
tokenizer.enable_truncation(256)
tokenizer.enable_padding()
texts = open(args.file, encoding="utf-8").read().splitlines()


def once():
    begin = time.perf_counter()
    ordered, vectors = sorted(texts, key=len), []
    for first in range(0, len(ordered), 32):
        encoded = tokenizer.encode_batch(ordered[first : first + 32])
        ids, mask = (np.array([getattr(e, name) for e in encoded], dtype=np.int64) for name in ("ids", "attention_mask"))
        hidden = session.run(None, {"ids": ids, "mask": mask})[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        vectors.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    np.concatenate(vectors)
    return len(texts) / (time.perf_counter() - begin)


print(json.dumps({"texts_per_second": statistics.median([once() for _ in range(args.repeat + 1)][1:])}))
