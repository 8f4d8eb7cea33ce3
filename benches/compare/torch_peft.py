"""LoRA steps with torch and PEFT on the CPU: the work of `metal-candle bench --train`, on the same tokens.

    python benches/compare/torch_peft.py MODEL_DIR --dtype bfloat16 --batch 4 --seq 256 --target all-linear

Adapter weights are f32 (PEFT's default), AdamW and clipping as ours, attention by torch's fused kernel. The first step
warms up and is not counted. Prints one JSON line.
"""
import argparse, json, statistics, time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stream import tokens

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--seq", type=int, default=256)
parser.add_argument("--target", default="all-linear")
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--grad-checkpoint", action="store_true")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa")
targets = args.target if args.target == "all-linear" else args.target.split(",")
model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
if args.grad_checkpoint:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
model.train()

# Every position has a target, as in ours: the rows are given already shifted.
rows = torch.tensor([tokens(row, args.seq + 1, model.config.vocab_size) for row in range(args.batch)])
inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
losses, seconds = [], []
for _ in range(args.repeat + 1):
    begin = time.perf_counter()
    loss = model(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    seconds.append(time.perf_counter() - begin)

print(json.dumps({
    "train_tokens_per_second": inputs.numel() / statistics.median(seconds[1:]),
    "trainable_parameters": sum(p.numel() for p in trained),
    "first_loss": losses[0],
    "last_loss": losses[-1],
}))
