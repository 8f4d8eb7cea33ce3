"""Real weights against transformers and PEFT: greedy tokens, and the loss of a trained adapter.

Run with a Python that has torch, transformers and peft (versions in ../../crates/mc-testkit/golden/requirements.txt):

    python benches/compare/parity.py --model MODEL_DIR --binary target/release/metal-candle --output OUT_DIR

It generates 64 tokens with both in f32, fine-tunes an adapter with the binary on the embedded shell requests, then
loads that adapter in PEFT and compares the loss on the held-out requests. Everything runs on the CPU.
"""
import argparse, json, pathlib, subprocess, sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "crates" / "mc-cli" / "assets" / "data"
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea, there lived",
]


def ours(binary, *args):
    """Runs the binary with --json; the last line of its stdout."""
    out = subprocess.run([binary, *map(str, args), "--dtype", "f32", "--json", "--quiet"], check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def greedy(model, tokenizer, args):
    ok = True
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            theirs = model.generate(ids, max_new_tokens=64, do_sample=False, use_cache=True)[0, ids.shape[1]:].tolist()
        mine = ours(args.binary, "generate", "--model", args.model, "--prompt", prompt, "--max-tokens", 64, "--ignore-eos")
        same = sum(a == b for a, b in zip(mine["tokens"], theirs))
        ok &= mine["tokens"] == theirs
        print(f"greedy tokens equal to transformers f32: {same} of {len(theirs)} after {prompt!r}")
    return ok


def held_out_loss(model, tokenizer):
    """Mean over the tokens of completions and their EOS, each record alone."""
    total, count = 0.0, 0
    for line in (DATA / "valid.jsonl").read_text().splitlines():
        record = json.loads(line)
        prompt, whole = (tokenizer(t).input_ids for t in (record["prompt"], record["prompt"] + record["completion"]))
        assert whole[: len(prompt)] == prompt, "the completion merges with the prompt"
        ids = torch.tensor([whole + [tokenizer.eos_token_id]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids).logits[0].double(), -1)
        for i in range(len(prompt), ids.shape[1]):
            total -= log_p[i - 1, ids[0, i]].item()
            count += 1
    return total / count, count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", default=60, type=int)
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ok = greedy(model, tokenizer, args)

    evaluation = ["eval", "--model", args.model, "--data", DATA / "valid.jsonl", "--mask-prompt"]
    before = ours(args.binary, *evaluation)
    subprocess.run(
        [args.binary, "finetune", "--model", args.model, "--data", DATA, "--output", args.output, "--mask-prompt",
         "--steps", str(args.steps), "--batch-size", "8", "--lr", "1e-3", "--dtype", "f32"], check=True)
    after = ours(args.binary, *evaluation, "--adapter", args.output)
    loss, count = held_out_loss(model, tokenizer)
    tuned, _ = held_out_loss(PeftModel.from_pretrained(model, args.output).eval(), tokenizer)
    print(f"held-out loss before: {before['loss']:.6f}, transformers {loss:.6f}, {count} tokens")
    print(f"held-out loss after:  {after['loss']:.6f}, PEFT {tuned:.6f}")
    print(f"relative differences: {abs(before['loss'] / loss - 1):.1e} before, {abs(after['loss'] / tuned - 1):.1e} after")
    ok &= before["tokens"] == after["tokens"] == count
    ok &= abs(before["loss"] - loss) <= 1e-4 and abs(after["loss"] - tuned) <= 1e-4 and after["loss"] < before["loss"]
    print("equal" if ok else "NOT equal")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
