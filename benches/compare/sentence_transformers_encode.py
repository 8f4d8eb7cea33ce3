"""Texts per second of sentence-transformers on the CPU: the work of `metal-candle bench --texts`.

    python benches/compare/sentence_transformers_encode.py MODEL_DIR FILE --dtype bfloat16

Lines are sorted by length and go in batches of 32, as `encode` does. The first run warms up. Prints one JSON line.
"""
import argparse, json, statistics, time

import torch
from sentence_transformers import SentenceTransformer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("file")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()

torch.set_num_threads(args.threads)
model = SentenceTransformer(args.model, device="cpu", model_kwargs={"dtype": getattr(torch, args.dtype)})
texts = open(args.file, encoding="utf-8").read().splitlines()


def once():
    begin = time.perf_counter()
    model.encode(texts, batch_size=32, show_progress_bar=False)
    return len(texts) / (time.perf_counter() - begin)


print(json.dumps({"texts_per_second": statistics.median([once() for _ in range(args.repeat + 1)][1:])}))
