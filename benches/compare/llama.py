"""Prefill and decode with llama.cpp on the CPU: the work of `metal-candle bench`; with --start, that of the first token.

    python benches/compare/llama.py MODEL.gguf --prompt 512 --gen 128
    python benches/compare/llama.py MODEL.gguf --start "The capital of France is"

Decoding feeds given tokens and samples none, which leaves out work that ours does. The first run warms up and is not
counted. With --start the time is that of loading and of the first token, Python's own start and imports left out.
Prints one JSON line.
"""
import argparse, json, time

from llama_cpp import Llama

from stream import tokens
from timing import report

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--gen", type=int, default=128)
parser.add_argument("--start")
parser.add_argument("--flash-attn", action="store_true")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()

context = 512 if args.start else args.prompt + args.gen
begin = time.perf_counter()
model = Llama(
    args.model,
    n_ctx=context,
    n_batch=512,
    n_threads=args.threads,
    n_threads_batch=args.threads,
    flash_attn=args.flash_attn,
    verbose=False,
)
if args.start:
    model.eval(model.tokenize(args.start.encode()))
    first = model.sample(temp=0.0)
    print(json.dumps({"first_token_seconds": time.perf_counter() - begin, "text": model.detokenize([first]).decode()}))
    raise SystemExit

prompt = tokens(0, args.prompt, model.n_vocab())
following = tokens(1, args.gen - 1, model.n_vocab())


def once():
    model.reset()
    begin = time.perf_counter()
    model.eval(prompt)
    prefilled = time.perf_counter()
    for token in following:
        model.eval([token])
    return prefilled - begin, time.perf_counter() - prefilled


report(once, args.prompt, args.gen, args.repeat)
