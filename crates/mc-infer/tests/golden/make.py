"""Makes the golden files of mc-infer: what transformers' logits processors keep, and greedy tokens under a penalty.

Run with the versions below: `python make.py`. The processors come in the order that `generate` puts them in.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

assert transformers.__version__ == "5.23.0", transformers.__version__
assert torch.__version__.startswith("2.15.0"), torch.__version__

HERE = Path(__file__).parent
MODELS = HERE.parents[2] / "mc-testkit" / "golden" / "models"

OPTIONS = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.8),
    dict(top_k=1),
    dict(top_k=5),
    dict(top_k=10_000),
    dict(top_p=0.9),
    dict(top_p=0.35, temperature=1.3),
    dict(top_p=1e-6),
    dict(top_p=1.0),
    dict(min_p=0.05),
    dict(min_p=0.4, temperature=2.0),
    dict(min_p=0.0),
    dict(min_p=1.0),
    dict(top_k=7, top_p=0.8),
    dict(top_k=20, top_p=0.8, temperature=0.7, repetition_penalty=1.05),
    dict(top_k=9, min_p=0.1),
    dict(top_p=0.95, min_p=0.02, temperature=1.5),
    dict(top_k=12, top_p=0.9, min_p=0.15, temperature=0.9, repetition_penalty=1.3),
    dict(repetition_penalty=0.5),
    dict(repetition_penalty=2.5, top_k=3),
]


def main():
    model = load("qwen2")
    rng = torch.Generator().manual_seed(20_240_607)
    inputs = []
    for vocab, scale in ((1, 1.0), (2, 1.0), (13, 1.0), (101, 3.0), (600, 2.0)):
        logits = torch.randn(vocab, generator=rng) * scale
        inputs.append((logits, torch.randint(vocab, (min(vocab, 8),), generator=rng)))
    # Equal logits: all those as likely as the k-th are kept.
    inputs.append((torch.tensor([1.0, 3.0, 2.0, 2.0, 3.0, 2.0, 0.0, 2.0, -1.0, 3.0, 2.0]), torch.tensor([0, 8])))
    cases = [case(model, index, *input, options) for index, input in enumerate(inputs) for options in OPTIONS]
    cases = [c for c in cases if c]
    penalties = [penalised(name, penalty) for name in ("qwen2", "llama3", "mistral") for penalty in (1.3, 0.8)]
    record = dict(
        inputs=[dict(logits=logits.tolist(), seen=seen.tolist()) for logits, seen in inputs],
        cases=cases,
        penalised_greedy=penalties,
    )
    (HERE / "expected.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


def load(name):
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager").eval()


def case(model, index, logits, seen, options):
    """The tokens left and their probabilities; None where rounding or equal logits decide which they are."""
    config = GenerationConfig(do_sample=True, **options)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(seen), device="cpu", model_kwargs={})
    scores = processors(seen[None], logits[None].clone())[0]
    kept = scores.isfinite()
    nudged = [processors(seen[None], (logits * (1 + nudge))[None])[0].isfinite() for nudge in (-1e-5, 1e-5)]
    # Under top-p it is a matter of the sort which of equal logits stay.
    ambiguous = options.get("top_p", 1.0) < 1.0 and len(set(logits.tolist())) < len(logits)
    if ambiguous or not all(torch.equal(kept, other) for other in nudged):
        return None
    ids = kept.nonzero()[:, 0]
    probabilities = scores.softmax(-1)[ids].tolist()
    return dict(input=index, options=options, ids=ids.tolist(), probabilities=[float(f"{p:.7g}") for p in probabilities])


def penalised(name, penalty):
    model = load(name)
    prompt = [5, 17, 42, 17, 89, 3]
    config = GenerationConfig(
        do_sample=False, repetition_penalty=penalty, max_new_tokens=24, output_scores=True, return_dict_in_generate=True
    )
    # What the model's own generation_config.json says is not wanted here.
    model.generation_config = GenerationConfig()
    out = model.generate(torch.tensor([prompt]), generation_config=config, attention_mask=torch.ones(1, len(prompt)))
    for scores in out.scores:
        best, second = scores[0].topk(2).values
        assert best - second > 1e-3, f"{name}: the best two logits are {best - second} apart"
    return dict(model=name, penalty=penalty, prompt=prompt, tokens=out.sequences[0, len(prompt) :].tolist())


if __name__ == "__main__":
    main()
