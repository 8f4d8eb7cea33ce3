"""Sentence vectors of a real model against sentence-transformers: the cosine of each pair of vectors.

Run with a Python that has sentence-transformers (versions in ../../crates/mc-embed/tests/golden/requirements.txt):

    python benches/compare/embed_parity.py --model MODEL_DIR --binary target/release/metal-candle --dtype f32

Makes 1,000 sentences of 1 to 200 words, the same in every run, embeds them with both (the reference in f32), and prints the
least and the mean cosine. Everything runs on the CPU.
"""
import argparse, json, random, subprocess, sys

import torch
from sentence_transformers import SentenceTransformer

WORDS = """
the of and a in to was is for on as with by he that from at his it an were are which this also be had or has first one their
its new after but who not they have her she two been other when there all during into school time may years more most only over
city some world would where later up such used many can state about national out known university united then made river
mountain cloud stone bread window letter garden winter summer market engine silver copper violin candle metal forest bridge
harbour paper mirror orange planet signal thunder whisper yellow zebra anchor basket circle quantum photosynthesis Zürich naïve
3.14 1945 e-mail don't U.S. AI-driven co-operation x^2 unbelievably antidisestablishmentarianism
""".split()
LEAST = {"f32": 0.99999, "bf16": 0.999}


def sentences(count=1000):
    rng = random.Random(20240)
    made = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 200))]
        for i in range(rng.randint(5, 20), len(words), 17):
            words[i] += rng.choice([".", ",", "?", ";"])
        made.append(" ".join(words))
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--dtype", default="f32", choices=LEAST)
    args = parser.parse_args()
    torch.set_num_threads(2)
    texts = sentences()
    command = [args.binary, "embed", "--model", args.model, "--dtype", args.dtype, "--quiet"]
    out = subprocess.run(command, input="\n".join(texts), check=True, capture_output=True, text=True).stdout
    ours = torch.tensor([json.loads(line) for line in out.splitlines()], dtype=torch.float64)
    model = SentenceTransformer(args.model, device="cpu", local_files_only=True)
    theirs = model.encode(texts, convert_to_tensor=True).double()
    cosines = torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
    print(f"{len(texts)} sentences, {args.dtype}: least cosine {cosines.min():.8f}, mean {cosines.mean():.8f}")
    print(f"largest difference of a number {(ours - theirs).abs().max():.2e}")
    sys.exit(not cosines.min() >= LEAST[args.dtype])


if __name__ == "__main__":
    main()
