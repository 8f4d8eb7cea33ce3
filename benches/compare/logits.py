"""How far logits are from those of torch in f32: ours (weights as in the file) and torch's in bf16.

    python benches/compare/logits.py MODEL_DIR --ours target/release/examples/logits

The text is the first 512 tokens of LICENSE. Prints one JSON line with the mean and the largest absolute error, and the
mean over positions of the Kullback-Leibler divergence from the reference in nats.
"""
import argparse, json, pathlib, subprocess, tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--ours", required=True)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)

text = (pathlib.Path(__file__).resolve().parents[2] / "LICENSE").read_text()
ids = AutoTokenizer.from_pretrained(args.model)(text).input_ids[:512]


@torch.inference_mode()
def torch_logits(dtype):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").eval()
    return model(torch.tensor([ids])).logits[0].float()


def our_logits():
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/logits.safetensors"
        subprocess.run([args.ours, args.model, out], input=" ".join(map(str, ids)), text=True, check=True)
        return load_file(out)["logits"]


def error(logits):
    difference = (logits - reference).abs()
    log_p, log_q = (torch.log_softmax(x.double(), -1) for x in (reference, logits))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return {"mean": difference.mean().item(), "max": difference.max().item(), "kl": kl.item()}


reference = torch_logits(torch.float32)
print(json.dumps({"tokens": len(ids), "ours": error(our_logits()), "torch_bf16": error(torch_logits(torch.bfloat16))}))
