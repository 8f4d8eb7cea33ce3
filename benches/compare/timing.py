"""What the programs that generate share: runs, of which the first warms up, and their report."""
import json, statistics


def report(once, prompt, gen, repeat):
    """Prints tokens per second; `once` gives the seconds of the prompt and those of the `gen - 1` tokens after it."""
    runs = [once() for _ in range(repeat + 1)][1:]
    speeds = {"prefill_tokens_per_second": prompt / statistics.median(prefill for prefill, _ in runs)}
    if gen > 1:
        speeds["decode_tokens_per_second"] = (gen - 1) / statistics.median(decode for _, decode in runs)
    print(json.dumps(speeds))
