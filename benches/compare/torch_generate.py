"""Prefill and greedy decode with torch on the CPU: the work of `metal-candle bench`.

    python benches/compare/torch_generate.py MODEL_DIR --dtype bfloat16 --prompt 512 --gen 128

The loop is written out, which is faster than `generate`; the head sees the last position alone. The first run warms up
and is not counted. Prints one JSON line.
"""
import argparse, time

import torch
from transformers import AutoModelForCausalLM

from stream import tokens
from timing import report

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--gen", type=int, default=128)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()

torch.set_num_threads(args.threads)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa").eval()
prompt = torch.tensor([tokens(0, args.prompt, model.config.vocab_size)])


@torch.inference_mode()
def once():
    begin = time.perf_counter()
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefilled = time.perf_counter()
    for _ in range(args.gen - 1):
        next_id = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(input_ids=next_id, past_key_values=out.past_key_values, use_cache=True)
    return prefilled - begin, time.perf_counter() - prefilled


report(once, args.prompt, args.gen, args.repeat)
